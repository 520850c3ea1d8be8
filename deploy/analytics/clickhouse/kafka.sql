-- Reads cdrelay's topic. Change brokers and topic; one consumer for each core or partition, whichever is fewer.
-- For brokers with TLS or a login see the settings kafka_security_protocol and kafka_sasl_… of the Kafka engine.

CREATE TABLE IF NOT EXISTS messages (message String)
ENGINE = Kafka
SETTINGS kafka_broker_list = 'localhost:9092',
    kafka_topic_list = 'telecmi.cdr',
    kafka_group_name = 'clickhouse',
    kafka_format = 'JSONAsString',
    kafka_num_consumers = 1,
    kafka_handle_error_mode = 'stream';
