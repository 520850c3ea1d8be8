-- Moves messages of the table `messages` of kafka.sql into `raw` and `errors`. In the format `cloudevents` the attributes stand in the
-- payload, otherwise in headers.

CREATE MATERIALIZED VIEW IF NOT EXISTS messages_to_raw TO raw AS
WITH
    mapFromArrays(_headers.name, _headers.value) AS headers,
    headers['ce_id'] <> '' AS in_headers
SELECT
    if(in_headers, headers['ce_id'], JSONExtractString(message, 'id')) AS ce_id,
    if(in_headers, headers['ce_source'], JSONExtractString(message, 'source')) AS ce_source,
    if(in_headers, headers['ce_type'], JSONExtractString(message, 'type')) AS ce_type,
    if(in_headers, headers['ce_subject'], JSONExtractString(message, 'subject')) AS ce_subject,
    parseDateTime64BestEffortOrNull(if(in_headers, headers['ce_time'], JSONExtractString(message, 'time')), 3, 'UTC') AS ce_time,
    _topic AS topic,
    _key AS key,
    if(in_headers, message, JSONExtractRaw(message, 'data')) AS event
FROM messages
WHERE _error = '' AND isValidJSON(message) AND ce_id <> '' AND ce_subject <> '' AND startsWith(event, '{');

CREATE MATERIALIZED VIEW IF NOT EXISTS messages_to_errors TO errors AS
WITH
    mapFromArrays(_headers.name, _headers.value) AS headers,
    headers['ce_id'] <> '' AS in_headers,
    if(in_headers, headers['ce_id'], JSONExtractString(message, 'id')) AS ce_id,
    if(in_headers, headers['ce_subject'], JSONExtractString(message, 'subject')) AS ce_subject,
    if(in_headers, message, JSONExtractRaw(message, 'data')) AS event
SELECT
    _topic AS topic,
    _partition AS partition,
    _offset AS offset,
    if(_error = '', message, _raw_message) AS message,
    multiIf(_error <> '', _error, NOT isValidJSON(message), 'not JSON', 'no CloudEvents attributes, or no event') AS problem
FROM messages
WHERE NOT (_error = '' AND isValidJSON(message) AND ce_id <> '' AND ce_subject <> '' AND startsWith(event, '{'));
