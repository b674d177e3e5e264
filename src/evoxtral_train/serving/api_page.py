"""`/docs`: the API's description (`/openapi.json`) as a page: plain HTML that loads nothing and runs no script."""

from jinja2 import Environment, StrictUndefined

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ info.title }} · API</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9em; }
pre { background: #8881; padding: 0.75rem; overflow-x: auto; }
h2 { border-top: 1px solid #8884; padding-top: 1rem; font-size: 1.1rem; }
td { padding: 0.2rem 1rem 0.2rem 0; vertical-align: top; }
:root { color-scheme: light dark; }
</style>
</head>
<body>
<h1>{{ info.title }} {{ info.version }}</h1>
<p>{{ info.description }} The same for programs: <a href="openapi.json">openapi.json</a>. Try it: <a href="./">the page</a>.</p>
<pre>curl -F file=@talk.wav http://localhost:8000/transcribe</pre>
{% for path, operations in paths.items() %}{% for method, operation in operations.items() %}
<h2><code>{{ method | upper }} {{ path }}</code></h2>
<p>{{ operation.summary }}.</p>
{% if operation.description is defined %}<p>{{ operation.description }}</p>{% endif %}
{% for body in operation.get("requestBody", {}).get("content", {}).values() %}
<table>
{% for name, field in body.schema.properties.items() %}
<tr><td><code>{{ name }}</code><td>{{ field.description }}{{ field | values }}</tr>
{% endfor %}
</table>
{% endfor %}
{% endfor %}{% endfor %}
</body>
</html>
"""


def render(openapi: dict) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["values"] = _values
    return environment.from_string(_TEMPLATE).render(openapi)


def _values(field: dict) -> str:
    """Those that a field may have, wherever its JSON schema lists them."""
    parts = [field, field.get("items", {}), *field.get("anyOf", [])]
    return next((f" Values: {', '.join(part['enum'])}." for part in parts if "enum" in part), "")
