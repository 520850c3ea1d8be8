{{ cdrelay.report("not_called_back", "hours", "short", "country_code") }}
