"""What the devices on Azure's SDK for Python share: how a client is made, what it sends, what it says.

`device_sdk.py` drives the asyncio client with it, `device_sdk_sync.py` the other. The argument is a JSON object: `ca`, `port`,
`websocket`, `connectionString`, and perhaps `certificate` and `key` (files) and `renewTokenAfter` (seconds).
"""

import json
import logging
import sys

import paho.mqtt.client
from azure.iot.device import X509, Message

# The SDK renews a token this long before its end; there is no option for it.
RENEWAL_MARGIN_SECONDS = 120


def say(what, value=""):
    # In one write: threads of the SDK speak at the same time, and a line must not be torn.
    sys.stdout.write(f"{what} {value}\n")
    sys.stdout.flush()


def use_port(port):
    """The SDK dials 8883 or 443 and has no option for another port: the MQTT client below it is told here, as a redirect of
    the port would do it. Nothing else of the SDK is touched."""
    connect = paho.mqtt.client.Client.connect

    def connect_to(self, *where, **options):
        return connect(self, *where, **{**options, "port": port})

    paho.mqtt.client.Client.connect = connect_to


class Renewals(logging.Handler):
    """Says when a token was renewed: the SDK tells nobody but its log."""

    def emit(self, record):
        if "Connection reauthorization successful" in record.getMessage():
            say("renewed")


def make_client(kind):
    given = json.loads(sys.argv[1])
    use_port(given["port"])
    with open(given["ca"], encoding="ascii") as file:
        options = {
            "server_verification_cert": file.read(),
            "connection_retry_interval": 1,
            "websockets": given["websocket"],
        }
    if "renewTokenAfter" in given:
        options["sastoken_ttl"] = RENEWAL_MARGIN_SECONDS + given["renewTokenAfter"]
        log = logging.getLogger("azure.iot.device")
        log.setLevel(logging.INFO)
        log.addHandler(Renewals())
    if "certificate" not in given:
        return kind.create_from_connection_string(given["connectionString"], **options)
    # This SDK takes certificates without a connection string.
    parts = dict(part.split("=", 1) for part in given["connectionString"].split(";"))
    certificate = X509(given["certificate"], given["key"])
    return kind.create_from_x509_certificate(certificate, parts["HostName"], parts["DeviceId"], **options)


def telemetry():
    """A message with every system property; those that this SDK has no field for go by the keys that they have in a topic."""
    message = Message("hello from the SDK", "m 1/ü", "utf-8", "text/plain", "output-1")
    message.correlation_id = "c&1"
    message.user_id = "u=1"
    message.expiry_time_utc = "2030-01-02T03:04:05Z"
    message.set_as_security_message()
    message.custom_properties = {
        "color": "light blue",
        "iothub-creation-time-utc": "2026-01-02T03:04:05Z",
        "$.to": "/back/end",
        "$.sub": "thermostat1",
        "$.schema": "recordType",
        "$.diagid": "trace-1",
        "$.diagctx": "creationtimeutc=1,k=v",
    }
    return message


def say_command(command):
    text = command.data.decode()
    properties = command.custom_properties
    said = {"body": text, "id": command.message_id, "type": command.content_type, "properties": properties}
    say("command", json.dumps(said))


def say_desired(patch):
    say("desired", json.dumps(patch))


def say_method(request):
    say("method", json.dumps({"name": request.name, "payload": request.payload}))


def say_connection(client):
    say("connected" if client.connected else "disconnected")
