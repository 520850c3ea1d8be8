{{ config(materialized="incremental", unique_key="ce_id", incremental_strategy="append") }}
WITH raw AS (
    -- A loader that is no load.sql may have copies.
    FROM {{ source("cdrelay", "raw") }}
    {%- if is_incremental() %} WHERE ce_id NOT IN (SELECT ce_id FROM {{ this }}){% endif %}
    QUALIFY row_number() OVER (PARTITION BY ce_id ORDER BY ce_time) = 1
)
FROM (
{{ cdrelay.cdr_fields() }}
)
