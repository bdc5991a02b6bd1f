"""The server's description of itself as OpenAPI, and as a page that needs nothing from the network."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment

from mcrnn.serving.bodies import ARROW, JSON, NETCDF, JsonAnswer, JsonRequest, Question

_netcdf = "A NetCDF file; what is forecast, and from where, follows from its coordinates and the query."
_arrow = (
    "An Arrow stream of one table; the column 'frames' (in the answer: 'forecast') has a fixed-shape tensor "
    "(time, channel, height, width) in each row."
)
_error = {
    "description": "The input does not fit the model; the sentence says what the model takes.",
    "content": {JSON: {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}},
}


def _contents(json_schema: dict[str, Any]) -> dict[str, Any]:
    binary = {"type": "string", "format": "binary"}
    return {
        JSON: {"schema": json_schema},
        NETCDF: {"schema": binary | {"description": _netcdf}},
        ARROW: {"schema": binary | {"description": _arrow}},
    }


FORECAST_DOCUMENTATION: dict[str, Any] = {
    "parameters": [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": field.description,
            "schema": {"type": "array", "items": {"type": "string"}}
            if name == "start"
            else {"type": "integer", "minimum": 1},
        }
        for name, field in Question.model_fields.items()
    ],
    "requestBody": {"required": True, "content": _contents(JsonRequest.model_json_schema())},
    "responses": {
        "200": {
            "description": "The forecasts, as the kind of the request's body.",
            "content": _contents(JsonAnswer.model_json_schema()),
        },
        "400": _error,
        **{
            status: _error | {"description": description}
            for status, description in (
                ("401", "The token is missing or wrong."),
                ("413", "The body is too large."),
                ("415", "The body is of another kind."),
                ("503", "No replica answers."),
            )
        },
    },
}
"""What FastAPI cannot know of the path `/forecast`."""

_TEMPLATE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ info.title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } td, th { border-bottom: 1px solid #ccc; padding: .3rem .8rem .3rem 0;
text-align: left; vertical-align: top } code { background: #8881; padding: 0 .2rem } h2 { margin-top: 2.2rem }
</style>
<h1>{{ info.title }} {{ info.version }}</h1>
<p>{{ info.description }} The same for programs: <a href="openapi.json">openapi.json</a>.</p>
{% for path, methods in paths.items() %}{% for method, what in methods.items() %}
<h2><code>{{ method.upper() }} {{ path }}</code></h2>
<p>{{ what.summary }}. {{ what.description or "" }}</p>
{% if what.parameters %}<table><tr><th>query</th><th></th></tr>
{% for each in what.parameters %}
<tr><td><code>{{ each.name }}</code></td><td>{{ each.description }}</td></tr>
{% endfor %}
</table>{% endif %}
{% if what.requestBody %}<h3>Body</h3><table>
{% for kind, content in what.requestBody.content.items() %}<tr><td><code>{{ kind }}</code></td><td>
{{ content.schema.description or "" }}
{% for name, field in (content.schema.properties or {}).items() %}
<div><code>{{ name }}</code> {{ field.description }}</div>
{% endfor %}</td></tr>{% endfor %}</table>{% endif %}
<h3>Answers</h3><table>
{% for status, answer in what.responses.items() %}
<tr><td>{{ status }}</td><td>{{ answer.description }}</td></tr>
{% endfor %}
</table>
{% endfor %}{% endfor %}
</html>
"""


def page(openapi: dict[str, Any]) -> str:
    """Return a description in OpenAPI as a page of HTML."""
    return Environment(autoescape=True).from_string(_TEMPLATE).render(openapi)
