"""Invented calls with all that TeleCMI's webhooks do, and the truth about each.

The truth comes from the story of a call, never from its messages: it is what the views and reports are checked against.
Facts: https://doc.telecmi.com/chub/docs (webhooks and live events) and https://doc.telecmi.com/piopiy/docs/webhooks-overview.
"""

import json
import random
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

TEAMS = ["Sales_2222223", "Support_2222223", "R&D_2222223", "விற்பனை_2222223", "Sales.*>", None]
WEIGHTS = [40, 30, 10, 8, 4, 8]
ZONE = ZoneInfo("Europe/London")
# The clocks go forward on the third day: one hour is missing.
FIRST_DAY = datetime(2026, 3, 27)
DAYS = 5


@dataclass
class Call:
    """One call as it was. Times in milliseconds since 1970, lengths in seconds."""

    call: str
    direction: str
    outcome: str
    started: int
    waited: float | None = None
    talked: float | None = None
    team: str | None = None
    agent: str | None = None
    customer: str | None = None
    voicemail: bool = False
    recording: str | None = None
    reconciled: bool = False
    only_reconciled: bool = False
    # (form of the request, body) in the order of sending.
    messages: list = field(default_factory=list, repr=False)


class Caller:
    """A phone number and how it is spelt from message to message."""

    def __init__(self, rng, number, national=False):
        self.rng, self.number, self.national = rng, number, national

    @property
    def normal(self):
        if self.number is None:
            return None
        return "0" + self.number[2:] if self.national else self.number

    def __call__(self):
        if self.number is None:
            return self.rng.choice(["anonymous", "", None])
        if self.national:
            return self.rng.choice([self.normal, f"({self.normal[:4]}) {self.normal[4:]}"])
        digits = self.number
        spaced = f"+{digits[:2]} {digits[2:6]}-{digits[6:]}"
        return self.rng.choice([int(digits), digits, "+" + digits, "00" + digits, spaced])


class Generator:
    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.numbers = [f"44207946{n:04d}" for n in range(200)]

    def uuid(self):
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def moment(self):
        hour = self.rng.choices(range(24), [1, 2, 2] + [1] * 5 + [6, 10, 14, 12, 9, 8, 10, 11, 9, 7, 5, 3] + [1] * 4)[0]
        day = FIRST_DAY + timedelta(days=self.rng.randrange(DAYS), hours=hour, seconds=self.rng.randrange(3600))
        return int(day.replace(tzinfo=ZONE).timestamp()) * 1000 + self.rng.randrange(1000)

    def someone(self):
        kind = self.rng.random()
        if kind < 0.05:
            return Caller(self.rng, None)
        return Caller(self.rng, self.rng.choice(self.numbers), national=kind < 0.15)

    def clock(self):
        """How a call's messages tell time. The documents describe `time` as that of the status, their samples have the start of the leg."""
        kind = self.rng.random()
        return ("leg" if kind < 0.6 else "event"), self.rng.choice(["ms", "ms", "ms", "text", "seconds"])

    def spell_time(self, milliseconds, form):
        return {"ms": milliseconds, "text": str(milliseconds), "seconds": milliseconds // 1000}[form]

    def app(self, name):
        return {name: self.rng.choice([2222223, 2222223, "2222223"])}

    def noise(self):
        """Fields that no view may stumble over."""
        extra = [
            {}, {}, {"custom": self.rng.choice(["none", "false", "", '{"crm":"true"}', "it's \"quoted\"\n"])},
            {"extra_params": self.rng.choice(['{"lead":"42"}', {"lead": "42"}, "{ 'Name': 'A' }", {"{}": None}])},
            {"x": {"deep": [1, {"y": None}]}, "rate": "0.0100"}, {"big": 12345678901234567890},
        ]
        return self.rng.choice(extra)

    def inbound(self, kind):
        rng, (clock, form) = self.rng, self.clock()
        conversation, start = self.uuid(), self.moment()
        wait, ring, talk = rng.choice([rng.uniform(0.5, 19), rng.uniform(15, 30), rng.uniform(20, 300)]), rng.uniform(1, 15), rng.randint(1, 900)
        wait, ring = round(wait, 3), round(ring, 3)
        if form == "seconds":
            start, wait, ring = start // 1000 * 1000, float(int(wait) + 1), float(int(ring) + 1)
        caller, team, agent = self.someone(), rng.choices(TEAMS, WEIGHTS)[0], f"{rng.randint(200, 215)}_2222223"
        virtual = rng.choice([440000000001, "440000000001"])

        def time(leg_start, moment):
            return {"time": self.spell_time(leg_start if clock == "leg" else moment, form)}

        def mine(status, moment):
            return {"type": "event", "direction": "inbound", "conversation_uuid": conversation, "cmiuuid": conversation, "from": caller(),
                    **self.app("app_id"), **time(start, moment), "to": "440000000001", "custom": "none", "status": status}

        def agents(status, leg, who, leg_start, moment, of_team):
            return {"leg": "b", "type": "event", "team": of_team, "user": who, "conversation_uuid": conversation, "cmiuuid": leg,
                    "direction": "outbound", "from": caller(), **self.app("app_id"), **time(leg_start, moment), "custom": "none", "status": status}

        def named():
            """How a CDR names its conversation."""
            return {"conversation_uuid": conversation} if rng.random() < 0.6 else rng.choice([{}, {"conversation_uuid": ""}])

        def user_missed(leg, who, leg_start, of_team):
            return {"type": "cdr", **self.app("appid"), "direction": "inbound", "cmiuuid": leg, "leg": "b", "user": who, "to": 440000000009,
                    "from": caller(), "team": of_team, "status": "missed", "hangup_reason": "recv_cancel",
                    "time": self.spell_time(leg_start, form)}

        def missed_cdr(waited, voicemail=False):
            of_team = team if team is not None else rng.choice([None, "", "null"])
            name = rng.choice(["cmiuuid", "cmiuuid", "cmiuid"])
            body = {"virtual_number": virtual, "custom": "false", **self.app("appid"), "type": "cdr", "direction": "inbound", name: conversation,
                    "status": "missed", "from": caller(), "time": self.spell_time(start, form), "waitedsec": rng.choice([waited, str(waited)]),
                    "hangup_reason": "recv_bye", "voicemail": rng.choice([voicemail, str(voicemail).lower()]), "team": of_team,
                    **named(), **self.noise()}
            return {**body, "voicename": "v.mp3"} if voicemail else body

        def answered_cdr(leg, leg_start, recording=None):
            body = {"virtual_number": virtual, "custom": "none", **self.app("appid"), "type": "cdr", "direction": "inbound", "cmiuuid": leg,
                    "user": agent, "status": "answered", "to": 440000000009, "from": caller(), "time": self.spell_time(leg_start, form),
                    "answeredsec": rng.choice([talk, str(talk)]), "team": team, "hangup_reason": "recv_bye", "ivr_name": "salesivr",
                    **named(), **self.noise()}
            return {**body, "record": True, "filename": recording} if recording else body

        call = Call(conversation, "inbound", "answered", start, team=team, customer=caller.normal)
        send = call.messages.append
        whole = int(wait) if wait >= 1 else 1
        if kind in ("answered", "second_agent", "late_recording", "cdr_lost", "reconciled_answer"):
            ringing, leg = start + round(wait * 1000), self.uuid()
            answer = ringing + round(ring * 1000)
            end = answer + talk * 1000
            call.agent, call.talked = agent, float(talk)
            call.waited = round((ringing - start if clock == "leg" else answer - start) / 1000, 3)
            send(mine("waiting", start))
            if kind == "second_agent":
                first, other = self.uuid(), rng.choice(TEAMS)
                send(agents("started", first, "299_2222223", start + 500 if form != "seconds" else start, start + 500 if form != "seconds" else start, other))
                send(agents("hangup", first, "299_2222223", start + 500 if form != "seconds" else start, start + 900 if form != "seconds" else start, other))
                send(user_missed(first, "299_2222223", start + 500 if form != "seconds" else start, other))
                if team is None:
                    call.team = other
            send(agents("started", leg, agent, ringing, ringing, team))
            send(agents("answered", leg, agent, ringing, answer, team))
            if rng.random() < 0.5:
                send(mine("answered", answer))
            cdr_first = rng.random() < 0.3
            cdrs = [answered_cdr(leg, ringing)]
            if kind == "late_recording" or rng.random() < 0.3:
                call.recording = f"{start}_2222223.mp3"
                cdrs.append({**cdrs[0], "record": True, "filename": call.recording})
            if kind == "cdr_lost":
                cdrs, call.talked, call.recording = [], None, None
            if kind == "reconciled_answer":
                call.reconciled, call.recording = True, None
                cdrs = []
            hangups = [agents("hangup", leg, agent, ringing, end, team), mine("hangup", end)]
            for body in (cdrs + hangups if cdr_first else hangups + cdrs):
                send(body)
            if kind == "reconciled_answer":
                call.messages.append(self.element("answered", "inbound", rng.choice([conversation, leg]), start, caller(), talk, agent))
        elif kind in ("missed", "short", "voicemail", "rung_and_missed", "missed_cdr_lost"):
            call.outcome = "missed"
            if kind == "short":
                whole = rng.randint(0, 4)
            call.waited, call.voicemail = float(whole), kind == "voicemail"
            end = start + whole * 1000
            send(mine("waiting", start))
            if kind == "rung_and_missed":
                leg = self.uuid()
                send(agents("started", leg, agent, start + 1000, start + 1000, team))
                send(agents("hangup", leg, agent, start + 1000, start + 2000, team))
                send(user_missed(leg, agent, start + 1000, team))
            if kind == "missed_cdr_lost":
                call.team = None
                call.waited = float(whole) if clock == "event" else None
                send(mine("hangup", end))
            elif rng.random() < 0.5:
                send(missed_cdr(whole, call.voicemail))
                send(mine("hangup", end))
            else:
                send(mine("hangup", end))
                send(missed_cdr(whole, call.voicemail))
        elif kind == "cdr_only":
            call.outcome, call.waited = "missed", float(whole)
            send(missed_cdr(whole))
        elif kind == "open":
            call.outcome, call.team = "open", None
            send(mine("waiting", start))
            if rng.random() < 0.5:
                # One agent did not pick up, and the call still waits.
                leg, call.team = self.uuid(), team
                send(agents("started", leg, agent, start + 1000, start + 1000, team))
                send(agents("hangup", leg, agent, start + 1000, start + 2000, team))
                send(user_missed(leg, agent, start + 1000, team))
        elif kind == "piopiy":
            began = start // 1000
            call.started, call.waited, call.talked, call.team = began * 1000, float(whole), float(talk), None
            send({"to": 440000000000, "appid": 2222222, "time": began * 1000, "start_time": began, "answer_time": began + whole,
                  "end_time": began + whole + talk, "from": caller(), "direction": "inbound", "duration": talk, "cmiuuid": self.uuid(),
                  "extra_params": "{ 'Name': 'Akil', 'ID':8915726 }", "call_rate": "0.450000", "balance": "878.900000",
                  "conversation_uuid": conversation, "leg": "a", "status": "answered", "type": "cdr"})
        elif kind in ("reconciled_missed", "reconciled_only"):
            call.reconciled = call.only_reconciled = True
            call.team = None
            if kind == "reconciled_missed":
                call.outcome = "missed"
                call.messages.append(self.element("missed", "inbound", conversation, start, caller(), 0, None))
            else:
                call.talked, call.agent = float(talk), agent
                call.messages.append(self.element("answered", "inbound", conversation, start, caller(), talk, agent))
        call.messages = [item if isinstance(item, tuple) else ("webhook", item) for item in call.messages]
        return call

    def element(self, status, direction, leg, start, number, talk, agent):
        """An event made from the platform's own list of calls."""
        body = {"type": "cdr", "direction": direction, "status": status, "appid": 2222223, "cmiuid": leg, "duration": talk, "billedsec": talk,
                "rate": 1, "name": "unknown", "time": start}
        body |= {"from": number, "to": 440000000001} if direction == "inbound" else {"from": 440000000001, "to": number}
        return "reconcile", (body | {"agent": agent} if agent else body)

    def outbound(self, to, start, answered, kind):
        rng, (clock, form) = self.rng, self.clock()
        a, b, k, r = self.uuid(), self.uuid(), self.uuid(), self.rng.randbytes(16).hex()
        if form == "seconds":
            start = start // 1000 * 1000
        dialled, talk, agent = start + 4000, rng.randint(1, 600), f"{rng.randint(200, 215)}_2222223"
        answer = dialled + 6000
        end = answer + (talk * 1000 if answered else 0)
        shared = {"call_id": k, "user": agent, "direction": "outbound", **({"request_id": r} if kind == "click" else {}), **self.noise()}
        call = Call(a, "outbound", "answered" if answered else "missed", start, customer=to.normal,
                    agent=agent if answered else None, talked=float(talk) if answered else None)

        def event(leg, status, moment):
            leg_start = start if leg == "a" else dialled
            number = (440000000009 if kind == "click" else to()) if leg == "a" else to()
            return {**shared, "leg": leg, "type": "event", "cmiuuid": a if leg == "a" else b, "callerid": "+442000000000", **self.app("app_id"),
                    "time": self.spell_time(leg_start if clock == "leg" else moment, form), "status": status, "to": number,
                    "conversation_uuid": a}

        def cdr(leg):
            spoke = answered or leg == "a"
            body = {**shared, "virtual_number": "440000000000", "leg": leg, "type": "cdr", **self.app("appid"),
                    "cmiuuid": a if leg == "a" else b, "status": "answered" if spoke else "missed",
                    "to": (440000000009 if kind == "click" else to()) if leg == "a" else to(),
                    "time": self.spell_time(start, form), "hangup_reason": "recv_bye"}
            if spoke:
                body["answeredsec"] = talk + 10 if leg == "a" else talk
            return body

        if kind == "reconciled":
            call.reconciled = call.only_reconciled = True
            _, body = self.element("answered" if answered else "missed", "outbound", a, start, to(), talk if answered else 0, agent)
            call.messages = [("reconcile", body)]
            return call
        bodies = [event("a", "started", start), event("a", "answered", start + 3000), event("b", "started", dialled)]
        bodies += [event("b", "answered", answer)] if answered else []
        bodies += [event("b", "hangup", end), cdr("b"), event("a", "hangup", end), cdr("a")]
        call.messages = [("webhook", body) for body in bodies]
        return call

    def calls(self, count):
        kinds = {"answered": 30, "second_agent": 8, "late_recording": 4, "cdr_lost": 4, "reconciled_answer": 3, "missed": 14, "short": 6,
                 "voicemail": 4, "rung_and_missed": 5, "missed_cdr_lost": 3, "cdr_only": 4, "open": 2, "piopiy": 3, "reconciled_missed": 3,
                 "reconciled_only": 2}
        made = []
        while len(made) < count:
            call = self.inbound(self.rng.choices(list(kinds), kinds.values())[0])
            made.append(call)
            missed = call.outcome == "missed" and call.customer is not None
            if missed and self.rng.random() < 0.6 or self.rng.random() < 0.05:
                later = self.rng.choice([self.rng.uniform(0.05, 4), self.rng.uniform(4, 23.9), self.rng.uniform(24.1, 40)])
                number = international(call.customer) if call.customer else self.rng.choice(self.numbers)
                to = Caller(self.rng, number, national=self.rng.random() < 0.1)
                kind = self.rng.choices(["dialled", "click", "reconciled"], [50, 40, 10])[0]
                made.append(self.outbound(to, call.started + int(later * 3_600_000), self.rng.random() < 0.6, kind))
        return made[:count]

    def other(self):
        """Notifications that are of no call."""
        return {"type": "sms", "appid": 2222223, "status": "QUEUED", "time": self.rng.getrandbits(30), "agent": "101_2222223"}


def international(number, country_code="44"):
    return country_code + number[1:] if number and number.startswith("0") else number


def as_query(body):
    """The fields as a GET has them: all texts."""
    def text(value):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return {name: text(value) for name, value in body.items()}
