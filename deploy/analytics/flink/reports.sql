-- The reports, as views. Their parameters are the view `parameters`; the time zone is that of the session, as in events.sql. Change a
-- period, say, by
--
--     ALTER VIEW parameters AS SELECT TIMESTAMP '2026-03-02 00:00:00' AS since, TIMESTAMP '2026-03-03 00:00:00' AS until,
--         20 AS target, 5 AS short, 24 AS hours, '44' AS country_code, 2 AS at_least;
--
-- A missed call that waited less than `short` seconds is a short hang-up: counted apart, and in no other column. A missed call whose
-- wait is unknown is no short hang-up. Teams without a name are `unassigned`. No view orders its rows: streaming queries could not.

-- All that is in the topic.
CREATE VIEW parameters AS
SELECT TIMESTAMP '1970-01-01 00:00:00' AS since, TIMESTAMP '2100-01-01 00:00:00' AS until, 20 AS target, 5 AS short, 24 AS hours,
    '' AS country_code, 2 AS at_least;

-- All calls with a number, in which the country's code takes the place of a leading 0.
CREATE VIEW numbered_calls AS
SELECT `call`, direction, outcome, started_ms,
    IF(country_code <> '' AND customer LIKE '0%', CONCAT(country_code, SUBSTRING(customer, 2)), customer) AS number
FROM timed_calls CROSS JOIN parameters
WHERE customer IS NOT NULL AND started_ms IS NOT NULL;

-- The inbound calls of a period.
CREATE VIEW inbound_calls AS
SELECT `call`, outcome, started_ms, started_at, local_time, waited_seconds, customer, voicemail, target, at_least,
    COALESCE(team, 'unassigned') AS team,
    outcome = 'answered' AS is_answered,
    outcome = 'missed' AND COALESCE(waited_seconds < short, FALSE) AS is_short,
    outcome = 'missed' AND NOT COALESCE(waited_seconds < short, FALSE) AS is_missed
FROM (
    SELECT *, TO_TIMESTAMP_LTZ(started_ms, 3) AS started_at, CAST(TO_TIMESTAMP_LTZ(started_ms, 3) AS TIMESTAMP(3)) AS local_time
    FROM timed_calls
) CROSS JOIN parameters
WHERE direction = 'inbound' AND outcome <> 'open' AND local_time >= since AND local_time < until;

-- Missed calls by team and hour of a day.
CREATE VIEW missed_by_team_and_hour AS
SELECT team, DATE_FORMAT(started_at, 'yyyy-MM-dd HH:00') AS `hour`, COUNT(*) FILTER (WHERE is_answered OR is_missed) AS offered,
    COUNT(*) FILTER (WHERE is_answered) AS answered, COUNT(*) FILTER (WHERE is_missed) AS missed,
    COUNT(*) FILTER (WHERE is_missed AND voicemail) AS voicemails, COUNT(*) FILTER (WHERE is_short) AS short_hangups
FROM inbound_calls
GROUP BY team, DATE_FORMAT(started_at, 'yyyy-MM-dd HH:00');

-- Service level by both usual formulas, for each team and for all of them:
-- answered within the target / offered, and answered within the target / (answered + missed after more than the target).
CREATE VIEW service_level AS
SELECT *, ROUND(CAST(answered_within AS DOUBLE) / NULLIF(offered, 0), 4) AS of_offered,
    ROUND(CAST(answered_within AS DOUBLE) / NULLIF(answered + missed_after, 0), 4) AS of_answered_or_missed_after
FROM (
    SELECT COALESCE(team, 'all teams') AS team,
        COUNT(*) FILTER (WHERE is_answered OR is_missed) AS offered, COUNT(*) FILTER (WHERE is_answered) AS answered,
        COUNT(*) FILTER (WHERE is_answered AND waited_seconds <= target) AS answered_within,
        COUNT(*) FILTER (WHERE is_missed) AS missed,
        COUNT(*) FILTER (WHERE is_missed AND NOT COALESCE(waited_seconds <= target, FALSE)) AS missed_after,
        COUNT(*) FILTER (WHERE is_short) AS short_hangups,
        COUNT(*) FILTER (WHERE (is_answered OR is_missed) AND waited_seconds IS NULL) AS wait_unknown
    FROM inbound_calls
    GROUP BY GROUPING SETS ((team), ())
);

-- Percentiles of the wait in seconds, of answered and of missed calls. Interpolated between two calls (PERCENTILE.INC).
CREATE VIEW waits AS
SELECT COALESCE(team, 'all teams') AS team, outcome, COUNT(*) AS calls, COUNT(waited_seconds) AS wait_known,
    ROUND(PERCENTILE(waited_seconds, 0.5), 3) AS p50, ROUND(PERCENTILE(waited_seconds, 0.9), 3) AS p90,
    ROUND(PERCENTILE(waited_seconds, 0.95), 3) AS p95, MAX(waited_seconds) AS longest
FROM inbound_calls
WHERE NOT is_short
GROUP BY GROUPING SETS ((team, outcome), (outcome));

-- Each missed call with a number: when it was first called back, when that was answered, and whether the caller got through alone.
-- Short hang-ups are left out.
CREATE VIEW timed_callbacks AS
SELECT missed.team, numbered.number, missed.`call`, missed.started_ms AS missed_ms, missed.waited_seconds, missed.voicemail,
    MIN(later.started_ms) FILTER (WHERE later.direction = 'outbound') AS back_ms,
    MIN(later.started_ms) FILTER (WHERE later.direction = 'outbound' AND later.outcome = 'answered') AS reached_ms,
    MIN(later.started_ms) FILTER (WHERE later.direction = 'inbound' AND later.outcome = 'answered') AS through_ms
FROM inbound_calls AS missed
JOIN numbered_calls AS numbered ON missed.`call` = numbered.`call`
LEFT JOIN (SELECT numbered_calls.*, hours * 3600e3 AS within_ms FROM numbered_calls CROSS JOIN parameters) AS later
    ON later.number = numbered.number AND later.started_ms > missed.started_ms AND later.started_ms <= missed.started_ms + later.within_ms
WHERE missed.is_missed
GROUP BY missed.team, numbered.number, missed.`call`, missed.started_ms, missed.waited_seconds, missed.voicemail;

CREATE VIEW callbacks AS
SELECT team, number, `call`, TO_TIMESTAMP_LTZ(missed_ms, 3) AS missed_at, waited_seconds, voicemail,
    TO_TIMESTAMP_LTZ(back_ms, 3) AS called_back_at, ROUND((back_ms - missed_ms) / 60000e0, 1) AS minutes,
    TO_TIMESTAMP_LTZ(reached_ms, 3) AS reached_at, TO_TIMESTAMP_LTZ(through_ms, 3) AS got_through_at
FROM timed_callbacks;

-- Missed calls that nobody called back within `hours`.
CREATE VIEW not_called_back AS
SELECT team, number, `call`, missed_at, waited_seconds, voicemail, got_through_at
FROM callbacks
WHERE called_back_at IS NULL;

-- How many missed calls were called back, and how fast.
CREATE VIEW callback_summary AS
SELECT COALESCE(team, 'all teams') AS team, COUNT(*) AS missed, COUNT(called_back_at) AS called_back, COUNT(reached_at) AS reached,
    COUNT(*) FILTER (WHERE called_back_at IS NULL AND got_through_at IS NOT NULL) AS got_through_alone,
    COUNT(*) FILTER (WHERE called_back_at IS NULL AND got_through_at IS NULL) AS lost,
    ROUND(PERCENTILE(minutes, 0.5), 1) AS median_minutes
FROM callbacks
GROUP BY GROUPING SETS ((team), ());

-- Numbers that called `at_least` times, short hang-ups included.
CREATE VIEW repeat_callers AS
SELECT number, calls, answered, missed, teams, TO_TIMESTAMP_LTZ(first_ms, 3) AS first_at, TO_TIMESTAMP_LTZ(last_ms, 3) AS last_at
FROM (
    SELECT number, COUNT(*) AS calls, COUNT(*) FILTER (WHERE is_answered) AS answered, COUNT(*) FILTER (WHERE inbound.outcome = 'missed') AS missed,
        COUNT(DISTINCT team) AS teams, MIN(inbound.started_ms) AS first_ms, MAX(inbound.started_ms) AS last_ms, MAX(at_least) AS at_least
    FROM inbound_calls AS inbound
    JOIN numbered_calls AS numbered ON inbound.`call` = numbered.`call`
    GROUP BY number
)
WHERE calls >= at_least;

-- Inbound calls by day of the week (1 is Monday) and hour, short hang-ups included.
CREATE VIEW busiest_hours AS
SELECT weekday, `hour`, calls, answered, missed, days, ROUND(CAST(calls AS DOUBLE) / days, 2) AS calls_a_day
FROM (
    SELECT weekday, `hour`, COUNT(*) AS calls, COUNT(*) FILTER (WHERE is_answered) AS answered,
        COUNT(*) FILTER (WHERE outcome = 'missed') AS missed, COUNT(DISTINCT `day`) AS days
    FROM (
        SELECT *, EXTRACT(ISODOW FROM local_time) AS weekday, EXTRACT(HOUR FROM local_time) AS `hour`, CAST(local_time AS DATE) AS `day`
        FROM inbound_calls
    )
    GROUP BY weekday, `hour`
);

-- What the reports above leave out or cannot know, over all that is in the topic.
CREATE VIEW quality AS
SELECT 'events' AS measure, COUNT(*) AS number FROM events
UNION ALL SELECT 'errors', COUNT(*) FROM errors
UNION ALL SELECT 'not_of_calls', COUNT(*) FROM events WHERE NOT (COALESCE(type, 'event') IN ('cdr', 'event') AND status IS NOT NULL)
UNION ALL SELECT 'calls', COUNT(*) FROM calls
UNION ALL SELECT 'inbound', COUNT(*) FROM calls WHERE direction = 'inbound'
UNION ALL SELECT 'open', COUNT(*) FROM calls WHERE outcome = 'open'
UNION ALL SELECT 'without_time', COUNT(*) FROM calls WHERE started_at IS NULL
UNION ALL SELECT 'inbound_without_wait', COUNT(*) FROM calls WHERE direction = 'inbound' AND outcome <> 'open' AND waited_seconds IS NULL
UNION ALL SELECT 'inbound_without_team', COUNT(*) FROM calls WHERE direction = 'inbound' AND team IS NULL
UNION ALL SELECT 'without_number', COUNT(*) FROM calls WHERE customer IS NULL
UNION ALL SELECT 'reconciled', COUNT(*) FROM calls WHERE reconciled
UNION ALL SELECT 'only_reconciled', COUNT(*) FROM calls WHERE only_reconciled;
