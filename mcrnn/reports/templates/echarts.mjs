// What the page of a search needs of Apache ECharts. `echarts.js.gz` is made of it by
//   npm install echarts@6.1.0 esbuild@0.28.2
//   npx esbuild echarts.mjs --bundle --minify --format=iife --global-name=echarts --target=es2020 --outfile=echarts.js \
//     --banner:js="/*! Apache ECharts 6.1.0 and ZRender 6.1.0; their licences are in echarts.LICENSE of the package mcrnn */"
//   gzip -9n echarts.js
export { init } from "echarts/core";
import { use } from "echarts/core";
import { LineChart, ParallelChart, ScatterChart } from "echarts/charts";
import { GridComponent, LegendComponent, ParallelComponent, TooltipComponent, VisualMapContinuousComponent } from "echarts/components";
import { CanvasRenderer } from "echarts/renderers";
use([LineChart, ScatterChart, ParallelChart, GridComponent, TooltipComponent, LegendComponent, ParallelComponent,
  VisualMapContinuousComponent, CanvasRenderer]);
