{{ config(post_hook="{{ cdrelay.reports_of(this) }}") }}
WITH events AS (FROM {{ ref("events") }})
FROM (
{{ cdrelay.cdr_calls() }}
)
