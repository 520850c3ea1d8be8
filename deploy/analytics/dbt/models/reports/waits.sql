{{ cdrelay.report("waits", "short") }}
