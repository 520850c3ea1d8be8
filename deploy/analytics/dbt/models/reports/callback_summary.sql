{{ cdrelay.report("callback_summary", "hours", "short", "country_code") }}
