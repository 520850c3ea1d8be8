{{ cdrelay.report("callbacks", "hours", "short", "country_code") }}
