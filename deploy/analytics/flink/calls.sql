-- One row for each conversation. See ../README.md for what the columns mean.

CREATE VIEW call_events AS
SELECT *, COALESCE(type, 'event') = 'cdr' AS is_cdr,
    leg IS NOT DISTINCT FROM 'b' OR agent IS NOT NULL AS is_agent_leg,
    REGEXP_REPLACE(status, '^(in|out)_', '') AS state
FROM fields
WHERE COALESCE(type, 'event') IN ('cdr', 'event') AND status IS NOT NULL;

-- The columns of `calls`, but points in time in milliseconds since 1970.
CREATE VIEW timed_calls AS
WITH beginnings AS (
    SELECT ce_subject AS `call`, MIN(time_ms) AS first_ms,
        -- The agent's leg of an inbound call says outbound too, but has no call_id, request_id or callerid.
        CASE
            WHEN COUNT(*) FILTER (WHERE direction = 'inbound') > 0 THEN 'inbound'
            WHEN COUNT(*) FILTER (WHERE type = 'cdr' OR COALESCE(call_id, request_id, callerid) IS NOT NULL) > 0 THEN 'outbound'
            ELSE 'inbound'
        END AS call_direction
    FROM call_events
    GROUP BY ce_subject
),
answers AS (
    -- On an outbound call, leg a is the agent's own phone.
    SELECT call_events.*, first_ms, call_direction,
        state IN ('answered', 'bridged') AND (call_direction = 'inbound' OR leg IS DISTINCT FROM 'a') AS is_answer,
        IF(call_direction = 'inbound', from_number, to_number) AS customer_number
    FROM call_events JOIN beginnings ON call_events.ce_subject = beginnings.`call`
),
ranked AS (
    -- The rows that know best come first: the answered CDR, answered events, the missed CDR of the call. The rank is a text that sorts before
    -- the value: the least of several leads with the best rank.
    SELECT *,
        CONCAT(CASE WHEN is_answer AND is_cdr THEN '0' WHEN is_answer THEN '1' WHEN is_cdr AND leg IS DISTINCT FROM 'b' THEN '2' ELSE '3' END,
            LPAD(CAST(COALESCE(time_ms, 4102444800000) AS STRING), 13, '0'), ce_id, CHR(31)) AS best,
        CONCAT(IF(call_direction = 'outbound' AND leg IS NOT DISTINCT FROM 'a', '1', '0'),
            LPAD(CAST(COALESCE(time_ms, 4102444800000) AS STRING), 13, '0'), ce_id, CHR(31)) AS customer_best
    FROM answers
),
conversations AS (
    SELECT ce_subject AS `call`,
        MIN(appid) AS appid,
        MIN(call_direction) AS direction,
        MIN(first_ms) AS started_ms,
        -- An answer at the very time of the start is the start of the leg: it does not tell when.
        COALESCE(MAX(answer_ms), MIN(time_ms) FILTER (WHERE is_answer AND NOT is_cdr AND time_ms > first_ms),
            MIN(time_ms) FILTER (WHERE is_answer AND time_ms > first_ms)) AS answered_ms,
        MAX(end_ms) AS end_ms,
        MAX(time_ms) FILTER (WHERE state = 'hangup' AND NOT is_agent_leg AND time_ms > first_ms) AS hangup_ms,
        CASE
            WHEN COUNT(*) FILTER (WHERE is_answer AND (is_cdr OR is_agent_leg OR call_direction = 'outbound')) > 0 THEN 'answered'
            WHEN COUNT(*) FILTER (WHERE is_cdr AND state = 'missed' AND leg IS DISTINCT FROM 'b' AND call_direction = 'inbound') > 0 THEN 'missed'
            WHEN COUNT(*) FILTER (WHERE is_answer) > 0 THEN 'answered'
            WHEN COUNT(*) FILTER (WHERE IF(call_direction = 'outbound', is_cdr OR state = 'hangup', state = 'hangup' AND NOT is_agent_leg)) > 0 THEN 'missed'
            ELSE 'open'
        END AS outcome,
        MAX(waitedsec) FILTER (WHERE is_cdr AND leg IS DISTINCT FROM 'b') AS waitedsec,
        MAX(answer_ms - start_ms) FILTER (WHERE answer_ms >= start_ms) AS answered_after_ms,
        MAX(end_ms - start_ms) FILTER (WHERE state = 'missed' AND end_ms >= start_ms) AS missed_after_ms,
        MAX(answeredsec) FILTER (WHERE is_cdr AND is_answer) AS talked_seconds,
        MIN(best || team) AS best_team,
        MIN(best || agent) FILTER (WHERE is_answer) AS best_agent,
        MIN(customer_best || customer_number) AS best_customer,
        MIN(virtual_number) AS virtual_number,
        MIN(best || hangup_reason) AS best_hangup_reason,
        COUNT(*) FILTER (WHERE voicemail) > 0 AS voicemail,
        MAX(recording) AS recording,
        MIN(ivr_name) AS ivr_name,
        COUNT(*) AS events,
        COUNT(*) FILTER (WHERE reconciled) > 0 AS reconciled,
        COUNT(*) FILTER (WHERE reconciled) = COUNT(*) AS only_reconciled
    FROM ranked
    GROUP BY ce_subject
),
waits AS (
    SELECT *,
        CASE WHEN direction = 'inbound' THEN COALESCE(
            waitedsec,
            CASE outcome WHEN 'answered' THEN COALESCE(answered_after_ms, answered_ms - started_ms)
                WHEN 'missed' THEN COALESCE(missed_after_ms, hangup_ms - started_ms) END / 1000e0
        ) END AS wait
    FROM conversations
)
SELECT `call`, appid, direction, outcome, started_ms,
    CASE WHEN outcome = 'answered' THEN answered_ms END AS answered_ms,
    COALESCE(end_ms, hangup_ms,
        CASE outcome WHEN 'answered' THEN answered_ms + CAST(ROUND(talked_seconds * 1000, 0) AS BIGINT)
            WHEN 'missed' THEN started_ms + CAST(ROUND(wait * 1000, 0) AS BIGINT) END) AS ended_ms,
    ROUND(wait, 3) AS waited_seconds, talked_seconds,
    SUBSTRING(best_team, LOCATE(CHR(31), best_team) + 1) AS team,
    SUBSTRING(best_agent, LOCATE(CHR(31), best_agent) + 1) AS agent,
    SUBSTRING(best_customer, LOCATE(CHR(31), best_customer) + 1) AS customer,
    virtual_number,
    SUBSTRING(best_hangup_reason, LOCATE(CHR(31), best_hangup_reason) + 1) AS hangup_reason,
    voicemail, recording, ivr_name, events, reconciled, only_reconciled
FROM waits;

CREATE VIEW calls AS
SELECT `call`, appid, direction, outcome, TO_TIMESTAMP_LTZ(started_ms, 3) AS started_at, TO_TIMESTAMP_LTZ(answered_ms, 3) AS answered_at,
    TO_TIMESTAMP_LTZ(ended_ms, 3) AS ended_at, waited_seconds, talked_seconds, team, agent, customer, virtual_number, hangup_reason,
    voicemail, recording, ivr_name, events, reconciled, only_reconciled
FROM timed_calls;
