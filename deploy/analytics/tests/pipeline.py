"""A bridge with a Kafka sink and a stdout sink, webhooks for it, and a consumer."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from calls import as_query

REPOSITORY = Path(__file__).resolve().parents[3]
PATIENCE = 200
CONFIG = """
[ingress]
listen = "127.0.0.1:{ingress}"
[ingress.routes.telecmi]
path = "/webhook/cdr"
# Stands in for the comparison with the platform's lists, whose events have such a source.
[ingress.routes.reconcile]
path = "/webhook/reconcile"
source = "/telecmi/{{appid|unknown}}/reconcile"
[admin]
listen = "127.0.0.1:{admin}"
# Without the window every resent webhook reaches the sinks, as it does when it is late.
[spool]
path = "{directory}/spool"
dedup_window = "0s"
[sinks.kafka]
type = "kafka"
brokers = "{kafka}"
topic = "{topic}"
[sinks.lines]
type = "stdout"
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def eventually(what, condition):
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE} s: {what}")
        time.sleep(0.05)
    return value


@contextmanager
def killed_if_it_fails(process):
    """Leaves no process behind when the block raises."""
    try:
        yield
    except BaseException:
        process.kill()
        process.wait()
        raise


class Bridge:
    def __init__(self, binary, directory, kafka, topic):
        self.ingress, self.admin = free_port(), free_port()
        self.lines = Path(directory) / "events.ndjson"
        config = Path(directory) / "cdrelay.toml"
        config.write_text(CONFIG.format(ingress=self.ingress, admin=self.admin, directory=directory, kafka=kafka, topic=topic))
        self.process = subprocess.Popen([binary, "run", "--config", config], stdout=self.lines.open("ab"),
                                        stderr=(Path(directory) / "bridge.log").open("ab"))
        with killed_if_it_fails(self.process):
            eventually("the bridge answers", self.is_up)

    def is_up(self):
        if self.process.poll() is not None:
            raise RuntimeError("the bridge has stopped: see bridge.log")
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/livez", timeout=1).status == 200
        except OSError:
            return False

    def stop(self):
        if self.process.poll() is None:
            with killed_if_it_fails(self.process):
                self.process.send_signal(signal.SIGTERM)
                self.process.wait(PATIENCE)


class Broker:
    """A Kafka of one node from the jars that tests/run fetches."""

    def __init__(self, directory):
        self.directory, self.port = Path(directory), free_port()
        controller = free_port()
        self.address = f"127.0.0.1:{self.port}"
        base = (REPOSITORY / "tests/support/kafka.properties").read_text()
        (self.directory / "kafka.properties").write_text(
            f"{base}\nlisteners=PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{controller}\n"
            f"controller.quorum.voters=1@127.0.0.1:{controller}\nlog.dirs={directory}/kafka\n")
        formatting = self.java("kafka.tools.StorageTool", "format", "--cluster-id", "cdrelay-tests-00000000", "--config")
        with killed_if_it_fails(formatting):
            if formatting.wait(PATIENCE) != 0:
                raise RuntimeError("Kafka's storage cannot be formatted: see kafka.log")
        self.start()

    def java(self, name, *arguments):
        command = ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.apache.logging.log4j.level=WARN", "-cp",
                   os.environ["CDRELAY_TEST_KAFKA_LIBS"] + "/*", name, *arguments, self.directory / "kafka.properties"]
        return subprocess.Popen(command, stdout=(self.directory / "kafka.log").open("ab"), stderr=subprocess.STDOUT)

    def start(self):
        self.process = self.java("kafka.Kafka")
        with killed_if_it_fails(self.process):
            eventually("Kafka listens", self.listens)

    def listens(self):
        if self.process.poll() is not None:
            raise RuntimeError("Kafka has stopped: see kafka.log")
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self):
        self.process.kill()
        self.process.wait()


def create_topic(kafka, topic, partitions=6):
    # The client has to live until it has its answer.
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(PATIENCE)


def produce_rubbish(kafka, topic):
    """Messages of somebody else in the same topic. Returns how many; one of them is empty."""
    producer = Producer({"bootstrap.servers": kafka})
    rubbish = [b"not json", b'{"a":1}', b"[1,2]", b"", b'{"specversion":"1.0","id":"x","subject":"y","data":3}']
    for value in rubbish:
        producer.produce(topic, value)
    producer.flush(PATIENCE)
    return len(rubbish)


def consume(kafka, topic):
    """All messages that the topic holds now."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "unused", "enable.auto.commit": False, "enable.partition.eof": True})
    partitions = consumer.list_topics(topic, PATIENCE).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    messages, unread = [], len(partitions)
    while unread:
        message = consumer.poll(PATIENCE)
        if message is None:
            raise TimeoutError(f"cannot read {topic}")
        if message.error():
            if message.error().code() != KafkaError._PARTITION_EOF:
                raise RuntimeError(message.error())
            unread -= 1
            continue
        messages.append(message)
    consumer.close()
    return messages


def committed(kafka, topic, group):
    """How many messages of the topic a consumer group has done with."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": group})
    partitions = [TopicPartition(topic, partition) for partition in consumer.list_topics(topic, PATIENCE).topics[topic].partitions]
    offsets = [partition.offset for partition in consumer.committed(partitions, PATIENCE)]
    consumer.close()
    return sum(offset for offset in offsets if offset > 0)


class Sender:
    """Sends the messages of calls in all forms that the ingress takes, a tenth of them twice. Returns the number of events."""

    def __init__(self, bridge, rng):
        self.bridge, self.rng = bridge, rng

    def send(self, calls, others):
        plan = [self.requests(call.messages) for call in calls] + [[("POST", "/webhook/cdr", json.dumps(body))] for body in others]
        self.rng.shuffle(plan)
        # The senders of the platform do not wait for each other, and the order holds within a call.
        with ThreadPoolExecutor(4) as pool:
            return sum(pool.map(self.deliver, [plan[at::4] for at in range(4)]))

    def requests(self, messages):
        requests, again = [], []
        waiting = list(messages)
        while waiting:
            route, body = waiting.pop(0)
            if route == "reconcile":
                requests.append(("POST", "/webhook/reconcile", json.dumps(body)))
                continue
            batch = [body]
            while self.rng.random() < 0.15 and waiting and waiting[0][0] == "webhook":
                batch.append(waiting.pop(0)[1])
            requests.append(self.request(batch))
            again += [item for item in batch if self.rng.random() < 0.1]
        # Sent again later, and perhaps in another form.
        return requests + [self.request([body]) for body in again]

    def request(self, batch):
        path = "/webhook/cdr"
        if len(batch) > 1:
            lines = self.rng.random() < 0.5
            return "POST", path, "\n".join(map(json.dumps, batch)) if lines else json.dumps(batch)
        body, kind = batch[0], self.rng.random()
        if kind < 0.15:
            return "GET", f"{path}?{urllib.parse.urlencode(as_query(body))}", None
        if kind < 0.25:
            return "POST", path, urllib.parse.urlencode({"data": json.dumps(body)})
        if kind < 0.35 and body["type"] == "cdr":
            return "POST", path, json.dumps({"count": 1, "cdr": [body], "code": 200})
        if kind < 0.5:
            members = list(body.items())
            self.rng.shuffle(members)
            body = dict(members)
        return "POST", path, json.dumps(body, ensure_ascii=kind < 0.7)

    def deliver(self, plan):
        connection = http.client.HTTPConnection("127.0.0.1", self.bridge.ingress, timeout=PATIENCE)
        stored = 0
        for requests in plan:
            for method, path, body in requests:
                connection.request(method, path, body and body.encode())
                answer = connection.getresponse()
                told = answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status} for {method} {path} {body}: {told}")
                stored += json.loads(told)["stored"]
        return stored


def remove(directory):
    shutil.rmtree(directory, ignore_errors=True)
