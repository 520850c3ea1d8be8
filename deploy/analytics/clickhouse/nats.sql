-- Reads a JetStream stream over a durable pull consumer, which has to exist: see README.md. The engine gives no headers, so that the
-- sink needs `format = "cloudevents"`. Change url, stream, consumer and subjects.

CREATE TABLE IF NOT EXISTS nats_messages (message String)
ENGINE = NATS
SETTINGS nats_url = 'localhost:4222',
    nats_stream = 'CDR',
    nats_consumer_name = 'clickhouse',
    nats_subjects = 'telecmi.cdr.>',
    nats_format = 'JSONAsString',
    nats_handle_error_mode = 'stream';
