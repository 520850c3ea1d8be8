-- Loads published events from files into the tables `raw` and `events`, one row for each event. Run it again for new files or longer
-- ones: events that are there stay. After a change of the fields below: DROP TABLE events, and run it again.
--
--     SET VARIABLE cdr_files = 'cdr/*.ndjson';
--     .read load.sql
--
-- A line is one message, as cdrelay's stdout sink writes it or as `kcat -J` does, in the format `event` or `cloudevents`.
--
-- Comments with braces mark the SQL that ../dbt uses.

CREATE TABLE IF NOT EXISTS raw (
    ce_id VARCHAR PRIMARY KEY,
    ce_source VARCHAR,
    ce_type VARCHAR,
    ce_subject VARCHAR NOT NULL,
    ce_time TIMESTAMPTZ,
    topic VARCHAR,
    key VARCHAR,
    event JSON NOT NULL
);

-- Lines that are no message, such as the torn line of a killed process.
CREATE TABLE IF NOT EXISTS errors (line_md5 VARCHAR PRIMARY KEY, file VARCHAR, line VARCHAR, problem VARCHAR);

-- kcat has headers as a list of names and values.
CREATE OR REPLACE MACRO cdr_header(message, name) AS
    CASE json_type(message, '$.headers')
        WHEN 'OBJECT' THEN json_extract_string(message, '$.headers.' || name)
        WHEN 'ARRAY' THEN CAST(message->'$.headers' AS VARCHAR[])[list_position(CAST(message->'$.headers' AS VARCHAR[]), name) + 1]
    END;

-- No valid JSON holds the character 31 unescaped, so that each line is one column.
CREATE OR REPLACE TEMP TABLE loaded AS
WITH lines AS (
    SELECT line, filename AS file, CASE WHEN json_valid(line) THEN line::JSON END AS message
    FROM read_csv(
        getvariable('cdr_files'), columns = {'line': 'VARCHAR'}, header = false, auto_detect = false, delim = chr(31), quote = '',
        escape = '', filename = true, max_line_size = 67108864
    )
    WHERE trim(coalesce(line, '')) <> ''
),
messages AS (
    SELECT *,
        CASE
            WHEN json_type(message, '$.event') = 'OBJECT' THEN message->'$.event'
            WHEN json_valid(message->>'$.payload') THEN CAST(message->>'$.payload' AS JSON)
        END AS payload
    FROM lines
)
SELECT line, file,
    -- In the format `cloudevents` the attributes stand in the payload.
    coalesce(cdr_header(message, 'ce_id'), payload->>'$.id') AS ce_id,
    coalesce(cdr_header(message, 'ce_source'), payload->>'$.source') AS ce_source,
    coalesce(cdr_header(message, 'ce_type'), payload->>'$.type') AS ce_type,
    coalesce(cdr_header(message, 'ce_subject'), payload->>'$.subject') AS ce_subject,
    TRY_CAST(coalesce(cdr_header(message, 'ce_time'), payload->>'$.time') AS TIMESTAMPTZ) AS ce_time,
    message->>'$.topic' AS topic,
    message->>'$.key' AS key,
    CASE WHEN cdr_header(message, 'ce_id') IS NOT NULL THEN payload ELSE payload->'$.data' END AS event
FROM messages;

INSERT OR IGNORE INTO raw
SELECT DISTINCT ON (ce_id) ce_id, ce_source, ce_type, ce_subject, ce_time, topic, key, event
FROM loaded WHERE ce_id IS NOT NULL AND ce_subject IS NOT NULL AND json_type(event) = 'OBJECT';

INSERT OR IGNORE INTO errors
SELECT DISTINCT ON (md5(line)) md5(line), file, line,
    CASE WHEN json_valid(line) THEN 'no CloudEvents attributes, or no event' ELSE 'not JSON' END
FROM loaded WHERE ce_id IS NULL OR ce_subject IS NULL OR json_type(event) IS DISTINCT FROM 'OBJECT';

DROP TABLE loaded;

-- {% macro cdr_functions() %}
-- A field as text, whether it came as a text or not. Missing, null, empty, 'null' and 'undefined' are all NULL.
CREATE OR REPLACE MACRO cdr_text(event, name) AS
    CASE WHEN json_extract_string(event, '$.' || name) NOT IN ('', 'null', 'undefined')
         THEN json_extract_string(event, '$.' || name) END;

-- A length of time in seconds.
CREATE OR REPLACE MACRO cdr_seconds(text) AS
    CASE WHEN TRY_CAST(text AS DOUBLE) BETWEEN 0 AND 1e7 THEN TRY_CAST(text AS DOUBLE) END;

-- A point in time: milliseconds since 1970, or seconds.
CREATE OR REPLACE MACRO cdr_time(text) AS
    CASE WHEN regexp_full_match(text, '[0-9]{1,10}') THEN make_timestamptz(CAST(text AS BIGINT) * 1000000)
         WHEN regexp_full_match(text, '[0-9]{11,13}') THEN make_timestamptz(CAST(text AS BIGINT) * 1000) END;

-- A phone number as its digits, without the prefix of international calls: +44 20 7946 0000 and 00442079460000 are 442079460000.
CREATE OR REPLACE MACRO cdr_number(text) AS
    nullif(regexp_replace(regexp_replace(text, '[^0-9]', '', 'g'), '^00', ''), '');
-- {% endmacro %}

-- See ../README.md for what the columns mean.
CREATE OR REPLACE VIEW fields AS
-- {% macro cdr_fields() %}
SELECT ce_id, ce_source, ce_type, ce_subject, ce_time, topic, key,
    ends_with(coalesce(ce_source, ''), '/reconcile') AS reconciled,
    lower(cdr_text(event, 'type')) AS type,
    lower(cdr_text(event, 'direction')) AS direction,
    lower(cdr_text(event, 'status')) AS status,
    lower(cdr_text(event, 'leg')) AS leg,
    coalesce(cdr_text(event, 'appid'), cdr_text(event, 'app_id')) AS appid,
    cdr_text(event, 'conversation_uuid') AS conversation_uuid,
    coalesce(cdr_text(event, 'cmiuuid'), cdr_text(event, 'cmiuid')) AS cmiuuid,
    cdr_text(event, 'call_id') AS call_id,
    cdr_text(event, 'request_id') AS request_id,
    cdr_number(cdr_text(event, 'from')) AS from_number,
    cdr_number(cdr_text(event, 'to')) AS to_number,
    cdr_number(cdr_text(event, 'virtual_number')) AS virtual_number,
    cdr_number(cdr_text(event, 'callerid')) AS callerid,
    cdr_text(event, 'team') AS team,
    coalesce(cdr_text(event, 'user'), cdr_text(event, 'agent')) AS agent,
    cdr_time(cdr_text(event, 'time')) AS time,
    cdr_time(cdr_text(event, 'start_time')) AS start_time,
    cdr_time(cdr_text(event, 'answer_time')) AS answer_time,
    cdr_time(cdr_text(event, 'end_time')) AS end_time,
    cdr_seconds(cdr_text(event, 'waitedsec')) AS waitedsec,
    coalesce(cdr_seconds(cdr_text(event, 'answeredsec')), cdr_seconds(cdr_text(event, 'billedsec')),
        cdr_seconds(cdr_text(event, 'duration'))) AS answeredsec,
    cdr_text(event, 'hangup_reason') AS hangup_reason,
    coalesce(cdr_text(event, 'voicemail') = 'true', false) AS voicemail,
    cdr_text(event, 'filename') AS recording,
    cdr_text(event, 'ivr_name') AS ivr_name,
    event
FROM raw
-- {% endmacro %}
;

CREATE TABLE IF NOT EXISTS events AS FROM fields LIMIT 0;
INSERT INTO events FROM fields WHERE ce_id NOT IN (SELECT ce_id FROM events);
