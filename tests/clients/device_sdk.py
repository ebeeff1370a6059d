"""A device on Azure's SDK, unmodified: device_sdk.py CA PORT mqtt|websocket CONNECTION_STRING [CERTIFICATE KEY]

It prints a line for each thing that happened and then keeps listening. The test reads the lines, changes the twin, kills
the node and starts it again.
"""

import asyncio
import json
import sys

from azure.iot.device import X509, Message, MethodResponse
from azure.iot.device.aio import IoTHubDeviceClient


def use_port(port):
    """The SDK dials 8883 or 443 and has no option for another port: the MQTT client below it is told here, as a redirect of
    the port would do it. Nothing else of the SDK is touched."""
    import paho.mqtt.client

    connect = paho.mqtt.client.Client.connect

    def connect_to(self, host, port=None, **more):
        return connect(self, host, port=use_port.port, **more)

    use_port.port = port
    paho.mqtt.client.Client.connect = connect_to


def say(what, value=""):
    print(what, value, flush=True)


def make_client(ca, transport, connection_string, *certificate_and_key):
    with open(ca, encoding="ascii") as file:
        options = {
            "server_verification_cert": file.read(),
            "connection_retry_interval": 1,
            "websockets": transport == "websocket",
        }
    if not certificate_and_key:
        return IoTHubDeviceClient.create_from_connection_string(connection_string, **options)
    # This SDK takes certificates without a connection string.
    parts = dict(part.split("=", 1) for part in connection_string.split(";"))
    return IoTHubDeviceClient.create_from_x509_certificate(
        X509(*certificate_and_key), parts["HostName"], parts["DeviceId"], **options
    )


async def main(ca, port, *arguments):
    use_port(int(port))
    client = make_client(ca, *arguments)
    await client.connect()

    message = Message("hello from the SDK")
    message.custom_properties["color"] = "light blue"
    message.content_type = "text/plain"
    await client.send_message(message)
    say("telemetry acknowledged")

    say("twin", json.dumps(await client.get_twin()))
    await client.patch_twin_reported_properties({"answer": 42})
    say("reported")

    client.on_twin_desired_properties_patch_received = lambda patch: say("desired", json.dumps(patch))
    client.on_message_received = lambda command: say(
        "command",
        json.dumps(
            {
                "body": command.data.decode(),
                "id": command.message_id,
                "type": command.content_type,
                "properties": command.custom_properties,
            }
        ),
    )

    async def answer(request):
        say("method", json.dumps({"name": request.name, "payload": request.payload}))
        response = MethodResponse.create_from_method_request(request, 200, {"echo": request.payload})
        await client.send_method_response(response)

    client.on_method_request_received = answer
    client.on_connection_state_change = lambda: say("connected" if client.connected else "disconnected")
    # Setting the handler subscribes in the background; a request that follows is answered after it.
    await client.get_twin()
    say("listening")
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
