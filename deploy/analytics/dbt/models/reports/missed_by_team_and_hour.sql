{{ cdrelay.report("missed_by_team_and_hour", "short") }}
