-- Moves messages of the table `nats_messages` of nats.sql into `raw` and `errors`.

CREATE MATERIALIZED VIEW IF NOT EXISTS nats_messages_to_raw TO raw AS
SELECT
    JSONExtractString(message, 'id') AS ce_id,
    JSONExtractString(message, 'source') AS ce_source,
    JSONExtractString(message, 'type') AS ce_type,
    JSONExtractString(message, 'subject') AS ce_subject,
    parseDateTime64BestEffortOrNull(JSONExtractString(message, 'time'), 3, 'UTC') AS ce_time,
    _subject AS topic,
    '' AS key,
    JSONExtractRaw(message, 'data') AS event
FROM nats_messages
WHERE _error = '' AND isValidJSON(message) AND ce_id <> '' AND ce_subject <> '' AND startsWith(event, '{');

CREATE MATERIALIZED VIEW IF NOT EXISTS nats_messages_to_errors TO errors AS
SELECT
    _subject AS topic,
    0 AS partition,
    cityHash64(message) AS offset,
    if(_error = '', nats_messages.message, _raw_message) AS message,
    multiIf(_error <> '', _error, NOT isValidJSON(nats_messages.message), 'not JSON', 'no CloudEvents attributes, or no event') AS problem
FROM nats_messages
WHERE NOT (_error = '' AND isValidJSON(nats_messages.message) AND JSONExtractString(nats_messages.message, 'id') <> ''
    AND JSONExtractString(nats_messages.message, 'subject') <> '' AND startsWith(JSONExtractRaw(nats_messages.message, 'data'), '{'));
