mod nats_sink;
