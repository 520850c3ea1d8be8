-- The tables that events are kept in. Run tables.sql, views.sql, reports.sql, then kafka.sql or nats.sql.

-- A field as text, whether it came as a text or not. Missing, null, empty, 'null' and 'undefined' are all NULL.
CREATE OR REPLACE FUNCTION cdr_text AS (event, name) ->
    nullIf(nullIf(nullIf(JSONExtract(event, name, 'Nullable(String)'), ''), 'null'), 'undefined');

-- A length of time in seconds.
CREATE OR REPLACE FUNCTION cdr_seconds AS (text) ->
    if(toFloat64OrNull(text) BETWEEN 0 AND 1e7, toFloat64OrNull(text), NULL);

-- A point in time: milliseconds since 1970, or seconds.
CREATE OR REPLACE FUNCTION cdr_time AS (text) ->
    multiIf(match(text, '^[0-9]{1,10}$'), fromUnixTimestamp64Milli(toInt64OrNull(text) * 1000, 'UTC'),
        match(text, '^[0-9]{11,13}$'), fromUnixTimestamp64Milli(toInt64OrNull(text), 'UTC'), NULL);

-- A phone number as its digits, without the prefix of international calls: +44 20 7946 0000 and 00442079460000 are 442079460000.
CREATE OR REPLACE FUNCTION cdr_number AS (text) ->
    nullIf(replaceRegexpOne(replaceRegexpAll(text, '[^0-9]', ''), '^00', ''), '');

-- Copies of an event have the same ce_id and fall away. No partitions: copies in different ones would stay.
CREATE TABLE IF NOT EXISTS raw
(
    ce_id String,
    ce_source String,
    ce_type LowCardinality(String),
    ce_subject String,
    ce_time Nullable(DateTime64(3, 'UTC')),
    topic LowCardinality(String),
    key String,
    event String CODEC(ZSTD),
    type LowCardinality(Nullable(String)) MATERIALIZED lower(cdr_text(event, 'type')),
    direction LowCardinality(Nullable(String)) MATERIALIZED lower(cdr_text(event, 'direction')),
    status LowCardinality(Nullable(String)) MATERIALIZED lower(cdr_text(event, 'status')),
    leg LowCardinality(Nullable(String)) MATERIALIZED lower(cdr_text(event, 'leg')),
    appid LowCardinality(Nullable(String)) MATERIALIZED coalesce(cdr_text(event, 'appid'), cdr_text(event, 'app_id')),
    conversation_uuid Nullable(String) MATERIALIZED cdr_text(event, 'conversation_uuid'),
    cmiuuid Nullable(String) MATERIALIZED coalesce(cdr_text(event, 'cmiuuid'), cdr_text(event, 'cmiuid')),
    call_id Nullable(String) MATERIALIZED cdr_text(event, 'call_id'),
    request_id Nullable(String) MATERIALIZED cdr_text(event, 'request_id'),
    from_number Nullable(String) MATERIALIZED cdr_number(cdr_text(event, 'from')),
    to_number Nullable(String) MATERIALIZED cdr_number(cdr_text(event, 'to')),
    virtual_number Nullable(String) MATERIALIZED cdr_number(cdr_text(event, 'virtual_number')),
    callerid Nullable(String) MATERIALIZED cdr_number(cdr_text(event, 'callerid')),
    team LowCardinality(Nullable(String)) MATERIALIZED cdr_text(event, 'team'),
    agent LowCardinality(Nullable(String)) MATERIALIZED coalesce(cdr_text(event, 'user'), cdr_text(event, 'agent')),
    time Nullable(DateTime64(3, 'UTC')) MATERIALIZED cdr_time(cdr_text(event, 'time')),
    start_time Nullable(DateTime64(3, 'UTC')) MATERIALIZED cdr_time(cdr_text(event, 'start_time')),
    answer_time Nullable(DateTime64(3, 'UTC')) MATERIALIZED cdr_time(cdr_text(event, 'answer_time')),
    end_time Nullable(DateTime64(3, 'UTC')) MATERIALIZED cdr_time(cdr_text(event, 'end_time')),
    waitedsec Nullable(Float64) MATERIALIZED cdr_seconds(cdr_text(event, 'waitedsec')),
    answeredsec Nullable(Float64) MATERIALIZED coalesce(cdr_seconds(cdr_text(event, 'answeredsec')),
        cdr_seconds(cdr_text(event, 'billedsec')), cdr_seconds(cdr_text(event, 'duration'))),
    hangup_reason LowCardinality(Nullable(String)) MATERIALIZED cdr_text(event, 'hangup_reason'),
    voicemail Bool MATERIALIZED coalesce(cdr_text(event, 'voicemail') = 'true', false),
    recording Nullable(String) MATERIALIZED cdr_text(event, 'filename'),
    ivr_name LowCardinality(Nullable(String)) MATERIALIZED cdr_text(event, 'ivr_name')
)
ENGINE = ReplacingMergeTree
ORDER BY ce_id;

-- Messages that are no event: not JSON, or without CloudEvents attributes. Look here when numbers are too low.
CREATE TABLE IF NOT EXISTS errors
(
    topic LowCardinality(String),
    partition UInt64,
    offset UInt64,
    received_at DateTime DEFAULT now(),
    message String,
    problem String
)
ENGINE = ReplacingMergeTree
ORDER BY (topic, partition, offset)
TTL received_at + INTERVAL 30 DAY;
