{{ cdrelay.report("service_level", "target", "short") }}
