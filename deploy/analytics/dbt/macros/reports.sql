{# The reports as macros of DuckDB, over the models of dbt. #}
{% macro reports_of(calls) %}
{{ cdrelay.cdr_reports()
    | replace("FROM calls", "FROM " ~ calls)
    | replace("FROM events", "FROM " ~ ref("events"))
    | replace("FROM errors", "FROM " ~ source("cdrelay", "errors")) }}
{% endmacro %}

{# A model with the rows of one of them. Its parameters are variables. #}
{% macro report(name) %}
-- depends_on: {{ ref("calls") }}
FROM {{ name }}('{{ var("since") }}', '{{ var("until") }}', zone := '{{ var("zone") }}'
{%- for parameter in varargs %}, {{ parameter }} := {{ var(parameter) if var(parameter) is number else "'" ~ var(parameter) ~ "'" }}{% endfor %})
{% endmacro %}
