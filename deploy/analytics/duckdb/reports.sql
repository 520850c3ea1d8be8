-- The reports, as table macros. `since` and `until` are local times of `zone`, `until` is exclusive:
--
--     FROM missed_by_team_and_hour('2026-03-02', '2026-03-03', zone := 'Europe/London');
--
-- A missed call that waited less than `short` seconds is a short hang-up: counted apart, and in no other column. A missed call whose
-- wait is unknown is no short hang-up. Teams without a name are `unassigned`. Comments with braces mark the SQL that ../dbt uses.

-- {% macro cdr_reports() %}
-- The inbound calls of a period.
CREATE OR REPLACE MACRO inbound_calls(since, until, zone, short) AS TABLE
    SELECT *, coalesce(team, 'unassigned') AS team_name,
        timezone(zone, started_at) AS local,
        outcome = 'answered' AS is_answered,
        outcome = 'missed' AND NOT coalesce(waited_seconds < short, false) AS is_missed,
        outcome = 'missed' AND coalesce(waited_seconds < short, false) AS is_short
    FROM calls
    WHERE direction = 'inbound' AND outcome <> 'open'
      AND timezone(zone, started_at) >= CAST(since AS TIMESTAMP) AND timezone(zone, started_at) < CAST(until AS TIMESTAMP);

-- Missed calls by team and hour of a day.
CREATE OR REPLACE MACRO missed_by_team_and_hour(since, until, zone := 'UTC', short := 5) AS TABLE
    SELECT team_name AS team, strftime(local, '%Y-%m-%d %H:00') AS hour,
        count(*) FILTER (is_answered OR is_missed) AS offered, count(*) FILTER (is_answered) AS answered, count(*) FILTER (is_missed) AS missed,
        count(*) FILTER (is_missed AND voicemail) AS voicemails, count(*) FILTER (is_short) AS short_hangups
    FROM inbound_calls(since, until, zone, short)
    GROUP BY ALL ORDER BY hour, team_name;

-- Service level by both usual formulas, for each team and for all of them:
-- answered within the target / offered, and answered within the target / (answered + missed after more than the target).
CREATE OR REPLACE MACRO service_level(since, until, zone := 'UTC', target := 20, short := 5) AS TABLE
    WITH counted AS (
        SELECT coalesce(team_name, 'all teams') AS team,
            count(*) FILTER (is_answered OR is_missed) AS offered, count(*) FILTER (is_answered) AS answered,
            count(*) FILTER (is_answered AND waited_seconds <= target) AS answered_within,
            count(*) FILTER (is_missed) AS missed,
            count(*) FILTER (is_missed AND NOT coalesce(waited_seconds <= target, false)) AS missed_after,
            count(*) FILTER (is_short) AS short_hangups,
            count(*) FILTER ((is_answered OR is_missed) AND waited_seconds IS NULL) AS wait_unknown
        FROM inbound_calls(since, until, zone, short)
        GROUP BY GROUPING SETS ((team_name), ())
    )
    SELECT *, round(answered_within / nullif(offered, 0), 4) AS of_offered,
        round(answered_within / nullif(answered + missed_after, 0), 4) AS of_answered_or_missed_after
    FROM counted ORDER BY team = 'all teams' DESC, team;

-- Percentiles of the wait in seconds, of answered and of missed calls. Interpolated between two calls (PERCENTILE.INC).
CREATE OR REPLACE MACRO waits(since, until, zone := 'UTC', short := 5) AS TABLE
    SELECT coalesce(team_name, 'all teams') AS team, outcome, count(*) AS calls, count(waited_seconds) AS wait_known,
        round(quantile_cont(waited_seconds, 0.5), 3) AS p50, round(quantile_cont(waited_seconds, 0.9), 3) AS p90,
        round(quantile_cont(waited_seconds, 0.95), 3) AS p95, max(waited_seconds) AS longest
    FROM inbound_calls(since, until, zone, short)
    WHERE NOT is_short
    GROUP BY GROUPING SETS ((team_name, outcome), (outcome)) ORDER BY grouping(team_name) DESC, team_name, outcome;

-- A number with the country's code in place of the leading 0.
CREATE OR REPLACE MACRO international(number, country_code) AS
    CASE WHEN country_code <> '' AND starts_with(number, '0') THEN country_code || substr(number, 2) ELSE number END;

-- Each missed call with a number: when it was first called back, when that was answered, and whether the caller got through alone.
-- Short hang-ups are left out.
CREATE OR REPLACE MACRO callbacks(since, until, zone := 'UTC', hours := 24, short := 5, country_code := '') AS TABLE
    WITH missed AS (
        SELECT call, team_name AS team, international(customer, country_code) AS number, started_at, waited_seconds, voicemail
        FROM inbound_calls(since, until, zone, short) WHERE is_missed AND customer IS NOT NULL
    ),
    later AS (
        SELECT call AS later_call, international(customer, country_code) AS number, started_at AS later_at, direction, outcome
        FROM calls WHERE customer IS NOT NULL AND started_at IS NOT NULL
    ),
    firsts AS (
        SELECT missed.*,
            min(later_at) FILTER (later.direction = 'outbound') AS called_back_at,
            min(later_at) FILTER (later.direction = 'outbound' AND later.outcome = 'answered') AS reached_at,
            min(later_at) FILTER (later.direction = 'inbound' AND later.outcome = 'answered') AS got_through_at
        FROM missed LEFT JOIN later ON missed.number = later.number AND later.later_at > missed.started_at
            AND later.later_at <= missed.started_at + to_hours(hours)
        GROUP BY ALL
    )
    SELECT team, number, call, timezone(zone, started_at) AS missed_at, waited_seconds, voicemail,
        timezone(zone, called_back_at) AS called_back_at, round((epoch(called_back_at) - epoch(started_at)) / 60, 1) AS minutes,
        timezone(zone, reached_at) AS reached_at,
        timezone(zone, got_through_at) AS got_through_at
    FROM firsts ORDER BY missed_at, call;

-- Missed calls that nobody called back within `hours`.
CREATE OR REPLACE MACRO not_called_back(since, until, zone := 'UTC', hours := 24, short := 5, country_code := '') AS TABLE
    SELECT team, number, call, missed_at, waited_seconds, voicemail, got_through_at
    FROM callbacks(since, until, zone := zone, hours := hours, short := short, country_code := country_code)
    WHERE called_back_at IS NULL ORDER BY missed_at, call;

-- How many missed calls were called back, and how fast.
CREATE OR REPLACE MACRO callback_summary(since, until, zone := 'UTC', hours := 24, short := 5, country_code := '') AS TABLE
    SELECT CASE WHEN grouping(team) = 1 THEN 'all teams' ELSE team END AS team, count(*) AS missed, count(called_back_at) AS called_back, count(reached_at) AS reached,
        count(*) FILTER (called_back_at IS NULL AND got_through_at IS NOT NULL) AS got_through_alone,
        count(*) FILTER (called_back_at IS NULL AND got_through_at IS NULL) AS lost,
        round(quantile_cont(minutes, 0.5), 1) AS median_minutes
    FROM callbacks(since, until, zone := zone, hours := hours, short := short, country_code := country_code)
    GROUP BY GROUPING SETS ((team), ()) ORDER BY grouping(team) DESC, team;

-- Numbers that called `at_least` times, short hang-ups included.
CREATE OR REPLACE MACRO repeat_callers(since, until, zone := 'UTC', at_least := 2, country_code := '') AS TABLE
    SELECT international(customer, country_code) AS number, count(*) AS calls, count(*) FILTER (is_answered) AS answered,
        count(*) FILTER (outcome = 'missed') AS missed, count(DISTINCT team_name) AS teams, min(local) AS first_at, max(local) AS last_at
    FROM inbound_calls(since, until, zone, 0)
    WHERE customer IS NOT NULL
    GROUP BY 1 HAVING count(*) >= at_least ORDER BY calls DESC, number;

-- Inbound calls by day of the week (1 is Monday) and hour, short hang-ups included.
CREATE OR REPLACE MACRO busiest_hours(since, until, zone := 'UTC') AS TABLE
    SELECT isodow(local) AS weekday, hour(local) AS hour, count(*) AS calls, count(*) FILTER (is_answered) AS answered,
        count(*) FILTER (outcome = 'missed') AS missed, count(DISTINCT CAST(local AS DATE)) AS days,
        round(count(*) / count(DISTINCT CAST(local AS DATE)), 2) AS calls_a_day
    FROM inbound_calls(since, until, zone, 0)
    GROUP BY ALL ORDER BY calls DESC, weekday, hour;

-- What the reports above leave out or cannot know, over all that is loaded.
CREATE OR REPLACE MACRO quality() AS TABLE
    WITH counted AS (
        SELECT (SELECT count(*) FROM events) AS events, (SELECT count(*) FROM errors) AS errors,
            (SELECT count(*) FROM events WHERE NOT (coalesce(type, 'event') IN ('cdr', 'event') AND status IS NOT NULL)) AS not_of_calls,
            count(*) AS calls, count(*) FILTER (direction = 'inbound') AS inbound, count(*) FILTER (outcome = 'open') AS open,
            count(*) FILTER (started_at IS NULL) AS without_time,
            count(*) FILTER (direction = 'inbound' AND outcome <> 'open' AND waited_seconds IS NULL) AS inbound_without_wait,
            count(*) FILTER (direction = 'inbound' AND team IS NULL) AS inbound_without_team,
            count(*) FILTER (customer IS NULL) AS without_number,
            count(*) FILTER (reconciled) AS reconciled, count(*) FILTER (only_reconciled) AS only_reconciled
        FROM calls
    )
    UNPIVOT counted ON * INTO NAME measure VALUE number;
-- {% endmacro %}
