-- One row for each conversation. See ../README.md for what the columns mean. Comments with braces mark the SQL that ../dbt uses.

CREATE OR REPLACE VIEW calls AS
-- {% macro cdr_calls() %}
WITH named AS (
    SELECT *,
        coalesce(type, 'event') = 'cdr' AS is_cdr,
        leg = 'b' AND leg IS NOT NULL OR agent IS NOT NULL AS is_agent_leg,
        regexp_replace(status, '^(in|out)_', '') AS state,
        min(time) OVER conversation AS first_time,
        -- The agent's leg of an inbound call says outbound too, but has no call_id, request_id or callerid.
        CASE
            WHEN bool_or(direction = 'inbound') OVER conversation THEN 'inbound'
            WHEN bool_or(type = 'cdr' OR coalesce(call_id, request_id, callerid) IS NOT NULL) OVER conversation THEN 'outbound'
            ELSE 'inbound'
        END AS call_direction
    FROM events
    WHERE coalesce(type, 'event') IN ('cdr', 'event') AND status IS NOT NULL
    WINDOW conversation AS (PARTITION BY ce_subject)
),
answers AS (
    -- On an outbound call, leg a is the agent's own phone.
    SELECT *,
        state IN ('answered', 'bridged') AND (call_direction = 'inbound' OR leg IS DISTINCT FROM 'a') AS is_answer,
        CASE WHEN call_direction = 'inbound' THEN from_number ELSE to_number END AS customer_number
    FROM named
),
ranked AS (
    -- The rows that know best come first: the answered CDR, answered events, the missed CDR of the call.
    SELECT *,
        (CASE WHEN is_answer AND is_cdr THEN 0 WHEN is_answer THEN 1 WHEN is_cdr AND leg IS DISTINCT FROM 'b' THEN 2 ELSE 3 END,
            coalesce(time, TIMESTAMPTZ '2100-01-01 00:00:00+00'), ce_id) AS rank,
        (CASE WHEN call_direction = 'outbound' AND leg = 'a' THEN 1 ELSE 0 END,
            coalesce(time, TIMESTAMPTZ '2100-01-01 00:00:00+00'), ce_id) AS customer_rank
    FROM answers
),
conversations AS (
    SELECT ce_subject AS call,
        min(appid) AS appid,
        min(call_direction) AS direction,
        min(first_time) AS started_at,
        -- An answer at the very time of the start is the start of the leg: it does not tell when.
        coalesce(max(answer_time), min(time) FILTER (is_answer AND NOT is_cdr AND time > first_time),
            min(time) FILTER (is_answer AND time > first_time)) AS answered_at,
        max(end_time) AS end_time,
        max(time) FILTER (state = 'hangup' AND NOT is_agent_leg AND time > first_time) AS hangup_at,
        bool_or(is_answer AND (is_cdr OR is_agent_leg OR call_direction = 'outbound')) AS surely_answered,
        bool_or(is_answer) AS perhaps_answered,
        bool_or(is_cdr AND state = 'missed' AND leg IS DISTINCT FROM 'b' AND call_direction = 'inbound') AS surely_missed,
        bool_or(CASE WHEN call_direction = 'outbound' THEN is_cdr OR state = 'hangup' ELSE state = 'hangup' AND NOT is_agent_leg END) AS ended,
        max(waitedsec) FILTER (is_cdr AND leg IS DISTINCT FROM 'b') AS waitedsec,
        max(epoch(answer_time) - epoch(start_time)) FILTER (answer_time >= start_time) AS answered_after,
        max(epoch(end_time) - epoch(start_time)) FILTER (state = 'missed' AND end_time >= start_time) AS missed_after,
        max(answeredsec) FILTER (is_cdr AND is_answer) AS talked_seconds,
        arg_min(team, rank) FILTER (team IS NOT NULL) AS team,
        arg_min(agent, rank) FILTER (agent IS NOT NULL AND is_answer) AS agent,
        arg_min(customer_number, customer_rank) FILTER (customer_number IS NOT NULL) AS customer,
        min(virtual_number) AS virtual_number,
        arg_min(hangup_reason, rank) FILTER (hangup_reason IS NOT NULL) AS hangup_reason,
        bool_or(voicemail) AS voicemail,
        max(recording) AS recording,
        min(ivr_name) AS ivr_name,
        count(*) AS events,
        bool_or(reconciled) AS reconciled,
        bool_and(reconciled) AS only_reconciled
    FROM ranked
    GROUP BY ce_subject
),
outcomes AS (
    SELECT *,
        CASE WHEN surely_answered THEN 'answered' WHEN surely_missed THEN 'missed' WHEN perhaps_answered THEN 'answered'
            WHEN ended THEN 'missed' ELSE 'open' END AS outcome
    FROM conversations
),
waits AS (
    SELECT *,
        CASE WHEN direction = 'inbound' THEN coalesce(
            waitedsec,
            CASE outcome WHEN 'answered' THEN coalesce(answered_after, epoch(answered_at) - epoch(started_at))
                WHEN 'missed' THEN coalesce(missed_after, epoch(hangup_at) - epoch(started_at)) END
        ) END AS waited_seconds
    FROM outcomes
)
SELECT call, appid, direction, outcome, started_at,
    CASE WHEN outcome = 'answered' THEN answered_at END AS answered_at,
    coalesce(end_time, hangup_at,
        CASE outcome WHEN 'answered' THEN answered_at + to_milliseconds(CAST(talked_seconds * 1000 AS BIGINT))
            WHEN 'missed' THEN started_at + to_milliseconds(CAST(waited_seconds * 1000 AS BIGINT)) END) AS ended_at,
    round(waited_seconds, 3) AS waited_seconds, talked_seconds, team, agent, customer, virtual_number, hangup_reason, voicemail,
    recording, ivr_name, events, reconciled, only_reconciled
FROM waits
-- {% endmacro %}
;
