-- `events`: one row for each event. `calls`: one row for each conversation. See ../README.md for what the columns mean.

CREATE OR REPLACE VIEW events AS
SELECT ce_id, ce_source, ce_type, ce_subject, ce_time, topic, key, endsWith(ce_source, '/reconcile') AS reconciled,
    type, direction, status, leg, appid, conversation_uuid, cmiuuid, call_id, request_id, from_number, to_number, virtual_number, callerid,
    team, agent, time, start_time, answer_time, end_time, waitedsec, answeredsec, hangup_reason, voicemail, recording, ivr_name, event
FROM raw FINAL;

CREATE OR REPLACE VIEW calls AS
WITH named AS (
    SELECT *,
        ifNull(type, 'event') = 'cdr' AS is_cdr,
        ifNull(leg, '') = 'b' OR agent IS NOT NULL AS is_agent_leg,
        replaceRegexpOne(ifNull(status, ''), '^(in|out)_', '') AS state,
        min(time) OVER (PARTITION BY ce_subject) AS first_time,
        -- The agent's leg of an inbound call says outbound too, but has no call_id, request_id or callerid.
        max(ifNull(direction, '') = 'inbound') OVER (PARTITION BY ce_subject) AS some_inbound,
        max(ifNull(type, 'event') = 'cdr' OR coalesce(call_id, request_id, callerid) IS NOT NULL) OVER (PARTITION BY ce_subject) AS some_outbound,
        if(some_inbound OR NOT some_outbound, 'inbound', 'outbound') AS call_direction
    FROM events
    WHERE ifNull(type, 'event') IN ('cdr', 'event') AND status IS NOT NULL
),
ranked AS (
    SELECT *,
        -- On an outbound call, leg a is the agent's own phone.
        state IN ('answered', 'bridged') AND (call_direction = 'inbound' OR ifNull(leg, '') <> 'a') AS is_answer,
        if(call_direction = 'inbound', from_number, to_number) AS customer_number,
        -- The rows that know best come first: the answered CDR, answered events, the missed CDR of the call.
        (multiIf(is_answer AND is_cdr, 0, is_answer, 1, is_cdr AND ifNull(leg, '') <> 'b', 2, 3),
            ifNull(time, toDateTime64('2100-01-01 00:00:00', 3, 'UTC')), ce_id) AS rank,
        (call_direction = 'outbound' AND ifNull(leg, '') = 'a', ifNull(time, toDateTime64('2100-01-01 00:00:00', 3, 'UTC')), ce_id) AS customer_rank
    FROM named
),
conversations AS (
    SELECT ce_subject AS call,
        min(ranked.appid) AS appid,
        any(call_direction) AS direction,
        min(first_time) AS started_at,
        -- An answer at the very time of the start is the start of the leg: it does not tell when.
        coalesce(max(answer_time), minIf(time, is_answer AND NOT is_cdr AND time > first_time), minIf(time, is_answer AND time > first_time)) AS answered_at,
        max(ranked.end_time) AS end_time,
        maxIf(time, state = 'hangup' AND NOT is_agent_leg AND time > first_time) AS hangup_at,
        max(is_answer AND (is_cdr OR is_agent_leg OR call_direction = 'outbound')) AS surely_answered,
        max(is_answer) AS perhaps_answered,
        max(is_cdr AND state = 'missed' AND ifNull(leg, '') <> 'b' AND call_direction = 'inbound') AS surely_missed,
        max(if(call_direction = 'outbound', is_cdr OR state = 'hangup', state = 'hangup' AND NOT is_agent_leg)) AS ended,
        maxIf(ranked.waitedsec, is_cdr AND ifNull(leg, '') <> 'b') AS waitedsec,
        maxIf(toUnixTimestamp64Milli(answer_time) - toUnixTimestamp64Milli(start_time), answer_time >= start_time) AS answered_after,
        maxIf(toUnixTimestamp64Milli(ranked.end_time) - toUnixTimestamp64Milli(start_time), state = 'missed' AND ranked.end_time >= start_time) AS missed_after,
        maxIf(answeredsec, is_cdr AND is_answer) AS talked_seconds,
        argMinIf(ranked.team, rank, ranked.team IS NOT NULL) AS team,
        argMinIf(ranked.agent, rank, ranked.agent IS NOT NULL AND is_answer) AS agent,
        argMinIf(customer_number, customer_rank, customer_number IS NOT NULL) AS customer,
        min(ranked.virtual_number) AS virtual_number,
        argMinIf(ranked.hangup_reason, rank, ranked.hangup_reason IS NOT NULL) AS hangup_reason,
        max(ranked.voicemail) AS voicemail,
        max(ranked.recording) AS recording,
        min(ranked.ivr_name) AS ivr_name,
        count() AS events,
        max(ranked.reconciled) AS reconciled,
        min(ranked.reconciled) AS only_reconciled
    FROM ranked
    GROUP BY ce_subject
),
waits AS (
    SELECT *,
        multiIf(surely_answered, 'answered', surely_missed, 'missed', perhaps_answered, 'answered', ended, 'missed', 'open') AS outcome,
        toUnixTimestamp64Milli(started_at) AS start,
        if(direction <> 'inbound', NULL, coalesce(waitedsec, multiIf(
            outcome = 'answered', coalesce(answered_after, toUnixTimestamp64Milli(answered_at) - start),
            outcome = 'missed', coalesce(missed_after, toUnixTimestamp64Milli(hangup_at) - start),
            NULL) / 1000)) AS wait
    FROM conversations
)
SELECT call, appid, direction, outcome, started_at,
    if(outcome = 'answered', waits.answered_at, NULL) AS answered_at,
    coalesce(end_time, hangup_at, multiIf(
        outcome = 'answered', waits.answered_at + toIntervalMillisecond(round(talked_seconds * 1000)),
        outcome = 'missed', started_at + toIntervalMillisecond(round(wait * 1000)),
        NULL)) AS ended_at,
    round(wait, 3) AS waited_seconds, talked_seconds, team, agent, customer, virtual_number, hangup_reason,
    CAST(voicemail AS Bool) AS voicemail, recording, ivr_name, events, CAST(reconciled AS Bool) AS reconciled,
    CAST(only_reconciled AS Bool) AS only_reconciled
FROM waits;
