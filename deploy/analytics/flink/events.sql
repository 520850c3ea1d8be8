-- Reads cdrelay's topic as the views `raw`, `errors` and `events`. Change topic and brokers. For brokers with TLS or a login add Kafka's
-- client settings, each with the prefix `properties.`. Times are shown, and periods are meant, in the time zone of the session:
--
--     SET 'table.local-time-zone' = 'Europe/London';
--
-- With 'scan.bounded.mode' a query reads what the topic holds when the query starts, and ends. Without it a streaming query goes on.

CREATE TABLE messages (
    message STRING,
    `key` STRING,
    headers MAP<STRING, BYTES> METADATA VIRTUAL,
    topic STRING METADATA VIRTUAL,
    `partition` INT METADATA VIRTUAL,
    `offset` BIGINT METADATA VIRTUAL,
    read_at AS PROCTIME()
) WITH (
    'connector' = 'kafka',
    'topic' = 'telecmi.cdr',
    'properties.bootstrap.servers' = 'localhost:9092',
    'properties.group.id' = 'flink',
    'scan.startup.mode' = 'earliest-offset',
    'scan.bounded.mode' = 'latest-offset',
    'key.format' = 'raw',
    'key.fields' = 'key',
    'value.format' = 'raw',
    'value.fields-include' = 'EXCEPT_KEY'
);

-- In the format `cloudevents` the attributes stand in the payload, otherwise in headers.
CREATE VIEW cloudevents AS
SELECT message, topic, `partition`, `offset`, `key`, read_at,
    IF(in_headers, DECODE(headers['ce_id'], 'UTF-8'), JSON_VALUE(message, '$.id')) AS ce_id,
    IF(in_headers, DECODE(headers['ce_source'], 'UTF-8'), JSON_VALUE(message, '$.source')) AS ce_source,
    IF(in_headers, DECODE(headers['ce_type'], 'UTF-8'), JSON_VALUE(message, '$.type')) AS ce_type,
    IF(in_headers, DECODE(headers['ce_subject'], 'UTF-8'), JSON_VALUE(message, '$.subject')) AS ce_subject,
    IF(in_headers, DECODE(headers['ce_time'], 'UTF-8'), JSON_VALUE(message, '$.time')) AS ce_time,
    IF(in_headers, message, JSON_QUERY(message, '$.data')) AS event
FROM (SELECT *, headers['ce_id'] IS NOT NULL AS in_headers FROM messages);

-- Copies of an event have the same ce_id: the first stays.
CREATE VIEW `raw` AS
SELECT ce_id, ce_source, ce_type, ce_subject,
    TO_TIMESTAMP_LTZ(ce_time, 'yyyy-MM-dd''T''HH:mm:ss.SSSX', 'UTC') AS ce_time, topic, `key`, event
FROM (
    SELECT *, ROW_NUMBER() OVER (PARTITION BY ce_id ORDER BY read_at) AS copy
    FROM cloudevents
    WHERE ce_id IS NOT NULL AND ce_subject IS NOT NULL AND event IS JSON OBJECT
)
WHERE copy = 1;

-- Messages that are no event. Look here when numbers are too low.
CREATE VIEW errors AS
SELECT topic, `partition`, `offset`, message,
    IF(message IS JSON, 'no CloudEvents attributes, or no event', 'not JSON') AS problem
FROM cloudevents
WHERE ce_id IS NULL OR ce_subject IS NULL OR event IS NOT JSON OBJECT;

-- A field as text, whether it came as a text or not. Missing, null, empty, 'null' and 'undefined' are all NULL; where digits are read they
-- fall away by themselves. Flink computes an expression anew wherever it is named: REGEXP_EXTRACT names its argument once, NULLIF would twice.
CREATE VIEW texts AS
SELECT ce_id, ce_source, ce_type, ce_subject, ce_time, topic, `key`, event,
    REGEXP_EXTRACT(JSON_VALUE(event, '$.type'), '(?s)^(?!(null|undefined)$).+', 0) AS type,
    REGEXP_EXTRACT(JSON_VALUE(event, '$.direction'), '(?s)^(?!(null|undefined)$).+', 0) AS direction,
    REGEXP_EXTRACT(JSON_VALUE(event, '$.status'), '(?s)^(?!(null|undefined)$).+', 0) AS status,
    REGEXP_EXTRACT(JSON_VALUE(event, '$.leg'), '(?s)^(?!(null|undefined)$).+', 0) AS leg,
    REGEXP_EXTRACT(JSON_VALUE(event, '$.appid'), '(?s)^(?!(null|undefined)$).+', 0) AS appid,
    REGEXP_EXTRACT(JSON_VALUE(event, '$.app_id'), '(?s)^(?!(null|undefined)$).+', 0) AS app_id,
    REGEXP_EXTRACT(JSON_VALUE(event, '$.conversation_uuid'), '(?s)^(?!(null|undefined)$).+', 0) AS conversation_uuid,
    REGEXP_EXTRACT(JSON_VALUE(event, '$.cmiuuid'), '(?s)^(?!(null|undefined)$).+', 0) AS cmiuuid,
    REGEXP_EXTRACT(JSON_VALUE(event, '$.cmiuid'), '(?s)^(?!(null|undefined)$).+', 0) AS cmiuid,
    REGEXP_EXTRACT(JSON_VALUE(event, '$.call_id'), '(?s)^(?!(null|undefined)$).+', 0) AS call_id,
    REGEXP_EXTRACT(JSON_VALUE(event, '$.request_id'), '(?s)^(?!(null|undefined)$).+', 0) AS request_id,
    JSON_VALUE(event, '$.from') AS from_text,
    JSON_VALUE(event, '$.to') AS to_text,
    JSON_VALUE(event, '$.virtual_number') AS virtual_number,
    JSON_VALUE(event, '$.callerid') AS callerid,
    REGEXP_EXTRACT(JSON_VALUE(event, '$.team'), '(?s)^(?!(null|undefined)$).+', 0) AS team,
    REGEXP_EXTRACT(JSON_VALUE(event, '$.user'), '(?s)^(?!(null|undefined)$).+', 0) AS `user`,
    REGEXP_EXTRACT(JSON_VALUE(event, '$.agent'), '(?s)^(?!(null|undefined)$).+', 0) AS agent,
    JSON_VALUE(event, '$.time') AS `time`,
    JSON_VALUE(event, '$.start_time') AS start_time,
    JSON_VALUE(event, '$.answer_time') AS answer_time,
    JSON_VALUE(event, '$.end_time') AS end_time,
    JSON_VALUE(event, '$.waitedsec') AS waitedsec,
    JSON_VALUE(event, '$.answeredsec') AS answeredsec,
    JSON_VALUE(event, '$.billedsec') AS billedsec,
    JSON_VALUE(event, '$.duration') AS duration,
    REGEXP_EXTRACT(JSON_VALUE(event, '$.hangup_reason'), '(?s)^(?!(null|undefined)$).+', 0) AS hangup_reason,
    JSON_VALUE(event, '$.voicemail') AS voicemail,
    REGEXP_EXTRACT(JSON_VALUE(event, '$.filename'), '(?s)^(?!(null|undefined)$).+', 0) AS recording,
    REGEXP_EXTRACT(JSON_VALUE(event, '$.ivr_name'), '(?s)^(?!(null|undefined)$).+', 0) AS ivr_name
FROM `raw`;

-- The columns of `events`, but points in time in milliseconds since 1970: Flink cannot subtract timestamps exactly. A point in time comes as
-- milliseconds since 1970, or as seconds; a phone number becomes its digits, without the prefix of international calls: +44 20 7946 0000
-- and 00442079460000 are 442079460000.
CREATE VIEW fields AS
SELECT ce_id, ce_source, ce_type, ce_subject, ce_time, topic, `key`,
    COALESCE(ce_source LIKE '%/reconcile', FALSE) AS reconciled,
    LOWER(type) AS type, LOWER(direction) AS direction, LOWER(status) AS status, LOWER(leg) AS leg,
    COALESCE(appid, app_id) AS appid, conversation_uuid, COALESCE(cmiuuid, cmiuid) AS cmiuuid, call_id, request_id,
    REGEXP_EXTRACT(REGEXP_REPLACE(from_text, '[^0-9]', ''), '^(?:00)?+(.+)', 1) AS from_number,
    REGEXP_EXTRACT(REGEXP_REPLACE(to_text, '[^0-9]', ''), '^(?:00)?+(.+)', 1) AS to_number,
    REGEXP_EXTRACT(REGEXP_REPLACE(virtual_number, '[^0-9]', ''), '^(?:00)?+(.+)', 1) AS virtual_number,
    REGEXP_EXTRACT(REGEXP_REPLACE(callerid, '[^0-9]', ''), '^(?:00)?+(.+)', 1) AS callerid,
    team, COALESCE(`user`, agent) AS agent,
    COALESCE(CAST(REGEXP_EXTRACT(`time`, '^[0-9]{11,13}$', 0) AS BIGINT), CAST(REGEXP_EXTRACT(`time`, '^[0-9]{1,10}$', 0) AS BIGINT) * 1000) AS time_ms,
    COALESCE(CAST(REGEXP_EXTRACT(start_time, '^[0-9]{11,13}$', 0) AS BIGINT), CAST(REGEXP_EXTRACT(start_time, '^[0-9]{1,10}$', 0) AS BIGINT) * 1000) AS start_ms,
    COALESCE(CAST(REGEXP_EXTRACT(answer_time, '^[0-9]{11,13}$', 0) AS BIGINT), CAST(REGEXP_EXTRACT(answer_time, '^[0-9]{1,10}$', 0) AS BIGINT) * 1000) AS answer_ms,
    COALESCE(CAST(REGEXP_EXTRACT(end_time, '^[0-9]{11,13}$', 0) AS BIGINT), CAST(REGEXP_EXTRACT(end_time, '^[0-9]{1,10}$', 0) AS BIGINT) * 1000) AS end_ms,
    CAST(REGEXP_EXTRACT(waitedsec, '^[0-9]{1,7}([.][0-9]+)?$', 0) AS DOUBLE) AS waitedsec,
    COALESCE(CAST(REGEXP_EXTRACT(answeredsec, '^[0-9]{1,7}([.][0-9]+)?$', 0) AS DOUBLE), CAST(REGEXP_EXTRACT(billedsec, '^[0-9]{1,7}([.][0-9]+)?$', 0) AS DOUBLE),
        CAST(REGEXP_EXTRACT(duration, '^[0-9]{1,7}([.][0-9]+)?$', 0) AS DOUBLE)) AS answeredsec,
    hangup_reason, COALESCE(voicemail = 'true', FALSE) AS voicemail, recording, ivr_name, event
FROM texts;

-- One row for each event. See ../README.md for what the columns mean.
CREATE VIEW events AS
SELECT ce_id, ce_source, ce_type, ce_subject, ce_time, topic, `key`, reconciled, type, direction, status, leg, appid, conversation_uuid,
    cmiuuid, call_id, request_id, from_number, to_number, virtual_number, callerid, team, agent,
    TO_TIMESTAMP_LTZ(time_ms, 3) AS `time`, TO_TIMESTAMP_LTZ(start_ms, 3) AS start_time, TO_TIMESTAMP_LTZ(answer_ms, 3) AS answer_time,
    TO_TIMESTAMP_LTZ(end_ms, 3) AS end_time, waitedsec, answeredsec, hangup_reason, voicemail, recording, ivr_name, event
FROM fields;
