{{ cdrelay.report("repeat_callers", "at_least", "country_code") }}
