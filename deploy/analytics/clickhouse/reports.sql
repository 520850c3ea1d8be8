-- The reports, as parameterised views: every parameter is needed. `since` and `until` are local times of `zone`, `until` is exclusive:
--
--     SELECT * FROM missed_by_team_and_hour(since = '2026-03-02', until = '2026-03-03', zone = 'Europe/London', short = 5);
--
-- A missed call that waited less than `short` seconds is a short hang-up: counted apart, and in no other column. A missed call whose
-- wait is unknown is no short hang-up. Teams without a name are `unassigned`.

-- The inbound calls of a period.
CREATE OR REPLACE VIEW inbound_calls AS
SELECT calls.* EXCEPT (team), ifNull(calls.team, 'unassigned') AS team,
    formatDateTime(started_at, '%Y-%m-%d %H:00', {zone:String}) AS local_hour,
    outcome = 'answered' AS is_answered,
    outcome = 'missed' AND ifNull(waited_seconds < {short:Float64}, false) AS is_short,
    outcome = 'missed' AND NOT is_short AS is_missed
FROM calls
WHERE direction = 'inbound' AND outcome <> 'open'
    AND started_at >= parseDateTime64BestEffort({since:String}, 3, {zone:String})
    AND started_at < parseDateTime64BestEffort({until:String}, 3, {zone:String});

-- Missed calls by team and hour of a day.
CREATE OR REPLACE VIEW missed_by_team_and_hour AS
SELECT team, local_hour AS hour, countIf(is_answered OR is_missed) AS offered, countIf(is_answered) AS answered,
    countIf(is_missed) AS missed, countIf(is_missed AND voicemail) AS voicemails, countIf(is_short) AS short_hangups
FROM inbound_calls(since = {since:String}, until = {until:String}, zone = {zone:String}, short = {short:Float64})
GROUP BY team, hour ORDER BY hour, team;

-- Service level by both usual formulas, for each team and for all of them:
-- answered within the target / offered, and answered within the target / (answered + missed after more than the target).
CREATE OR REPLACE VIEW service_level AS
SELECT if(grouping(inbound.team) = 1, 'all teams', inbound.team) AS team,
    countIf(is_answered OR is_missed) AS offered, countIf(is_answered) AS answered,
    countIf(is_answered AND ifNull(waited_seconds <= {target:Float64}, false)) AS answered_within,
    countIf(is_missed) AS missed,
    countIf(is_missed AND NOT ifNull(waited_seconds <= {target:Float64}, false)) AS missed_after,
    countIf(is_short) AS short_hangups,
    countIf((is_answered OR is_missed) AND waited_seconds IS NULL) AS wait_unknown,
    round(answered_within / nullIf(offered, 0), 4) AS of_offered,
    round(answered_within / nullIf(answered + missed_after, 0), 4) AS of_answered_or_missed_after
FROM inbound_calls(since = {since:String}, until = {until:String}, zone = {zone:String}, short = {short:Float64}) AS inbound
GROUP BY GROUPING SETS ((inbound.team), ()) ORDER BY grouping(inbound.team) DESC, team;

-- Percentiles of the wait in seconds, of answered and of missed calls. Interpolated between two calls (PERCENTILE.INC).
CREATE OR REPLACE VIEW waits AS
SELECT if(grouping(inbound.team) = 1, 'all teams', inbound.team) AS team, outcome, count() AS calls, count(waited_seconds) AS wait_known,
    round(quantileExactInclusive(0.5)(waited_seconds), 3) AS p50, round(quantileExactInclusive(0.9)(waited_seconds), 3) AS p90,
    round(quantileExactInclusive(0.95)(waited_seconds), 3) AS p95, max(waited_seconds) AS longest
FROM inbound_calls(since = {since:String}, until = {until:String}, zone = {zone:String}, short = {short:Float64}) AS inbound
WHERE NOT is_short
GROUP BY GROUPING SETS ((inbound.team, outcome), (outcome)) ORDER BY grouping(inbound.team) DESC, team, outcome;

-- A number with the country's code in place of the leading 0.
CREATE OR REPLACE FUNCTION cdr_international AS (number, country_code) ->
    if(country_code <> '' AND startsWith(assumeNotNull(number), '0'), concat(country_code, substring(number, 2)), number);

-- Each missed call with a number: when it was first called back, when that was answered, and whether the caller got through alone.
-- Short hang-ups are left out.
CREATE OR REPLACE VIEW callbacks AS
WITH missed AS (
    SELECT call, team, assumeNotNull(cdr_international(customer, {country_code:String})) AS number, assumeNotNull(started_at) AS missed_at,
        waited_seconds, voicemail
    FROM inbound_calls(since = {since:String}, until = {until:String}, zone = {zone:String}, short = {short:Float64})
    WHERE is_missed AND customer IS NOT NULL
),
later AS (
    SELECT assumeNotNull(cdr_international(customer, {country_code:String})) AS number, started_at AS later_at, direction, outcome
    FROM calls WHERE customer IS NOT NULL AND started_at IS NOT NULL
),
firsts AS (
    SELECT call, any(missed.team) AS team, any(missed.number) AS number, any(missed.missed_at) AS at, any(missed.waited_seconds) AS waited_seconds,
        any(missed.voicemail) AS voicemail,
        minIf(later_at, direction = 'outbound' AND in_time) AS back_at,
        minIf(later_at, direction = 'outbound' AND outcome = 'answered' AND in_time) AS answered_at,
        minIf(later_at, direction = 'inbound' AND outcome = 'answered' AND in_time) AS through_at
    FROM (
        SELECT missed.*, later.later_at AS later_at, later.direction AS direction, later.outcome AS outcome,
            later_at > missed.missed_at AND later_at <= missed.missed_at + toIntervalSecond(toInt64({hours:Float64} * 3600)) AS in_time
        FROM missed LEFT JOIN later ON missed.number = later.number
    ) AS missed
    GROUP BY call
)
SELECT team, number, call, toTimeZone(at, {zone:String}) AS missed_at, waited_seconds, voicemail,
    toTimeZone(back_at, {zone:String}) AS called_back_at,
    round((toUnixTimestamp64Milli(back_at) - toUnixTimestamp64Milli(at)) / 60000, 1) AS minutes,
    toTimeZone(answered_at, {zone:String}) AS reached_at, toTimeZone(through_at, {zone:String}) AS got_through_at
FROM firsts ORDER BY missed_at, call;

-- Missed calls that nobody called back within `hours`.
CREATE OR REPLACE VIEW not_called_back AS
SELECT team, number, call, missed_at, waited_seconds, voicemail, got_through_at
FROM callbacks(since = {since:String}, until = {until:String}, zone = {zone:String}, hours = {hours:Float64}, short = {short:Float64},
    country_code = {country_code:String})
WHERE called_back_at IS NULL ORDER BY missed_at, call;

-- How many missed calls were called back, and how fast.
CREATE OR REPLACE VIEW callback_summary AS
SELECT if(grouping(each.team) = 1, 'all teams', each.team) AS team, count() AS missed, count(called_back_at) AS called_back,
    count(reached_at) AS reached,
    countIf(called_back_at IS NULL AND got_through_at IS NOT NULL) AS got_through_alone,
    countIf(called_back_at IS NULL AND got_through_at IS NULL) AS lost,
    round(quantileExactInclusive(0.5)(minutes), 1) AS median_minutes
FROM callbacks(since = {since:String}, until = {until:String}, zone = {zone:String}, hours = {hours:Float64}, short = {short:Float64},
    country_code = {country_code:String}) AS each
GROUP BY GROUPING SETS ((each.team), ()) ORDER BY grouping(each.team) DESC, team;

-- Numbers that called `at_least` times, short hang-ups included.
CREATE OR REPLACE VIEW repeat_callers AS
SELECT cdr_international(customer, {country_code:String}) AS number, count() AS calls, countIf(is_answered) AS answered,
    countIf(outcome = 'missed') AS missed, uniqExact(team) AS teams,
    toTimeZone(min(started_at), {zone:String}) AS first_at, toTimeZone(max(started_at), {zone:String}) AS last_at
FROM inbound_calls(since = {since:String}, until = {until:String}, zone = {zone:String}, short = 0)
WHERE customer IS NOT NULL
GROUP BY number HAVING calls >= {at_least:UInt32} ORDER BY calls DESC, number;

-- Inbound calls by day of the week (1 is Monday) and hour, short hang-ups included.
CREATE OR REPLACE VIEW busiest_hours AS
SELECT toDayOfWeek(toDate(substring(local_hour, 1, 10))) AS weekday, toUInt8(substring(local_hour, 12, 2)) AS hour, count() AS calls,
    countIf(is_answered) AS answered, countIf(outcome = 'missed') AS missed, uniqExact(substring(local_hour, 1, 10)) AS days,
    round(calls / days, 2) AS calls_a_day
FROM inbound_calls(since = {since:String}, until = {until:String}, zone = {zone:String}, short = 0)
GROUP BY weekday, hour ORDER BY calls DESC, weekday, hour;

-- What the reports above leave out or cannot know, over all that is loaded.
CREATE OR REPLACE VIEW quality AS
WITH
    (SELECT count() FROM events) AS all_events,
    (SELECT count() FROM errors FINAL) AS all_errors,
    (SELECT count() FROM events WHERE NOT (ifNull(type, 'event') IN ('cdr', 'event') AND status IS NOT NULL)) AS not_of_calls
SELECT tupleElement(pair, 1) AS measure, tupleElement(pair, 2) AS number
FROM (
    SELECT arrayJoin([
        ('events', all_events), ('errors', all_errors), ('not_of_calls', not_of_calls),
        ('calls', count()), ('inbound', countIf(direction = 'inbound')), ('open', countIf(outcome = 'open')),
        ('without_time', countIf(started_at IS NULL)),
        ('inbound_without_wait', countIf(direction = 'inbound' AND outcome <> 'open' AND waited_seconds IS NULL)),
        ('inbound_without_team', countIf(direction = 'inbound' AND team IS NULL)),
        ('without_number', countIf(customer IS NULL)),
        ('reconciled', countIf(reconciled)), ('only_reconciled', countIf(only_reconciled))
    ]) AS pair
    FROM calls
);
