"""A device on Azure's SDK, unmodified: the client that blocks. It does what `device_sdk.py` does, and is tested like it."""

import json
import threading

from azure.iot.device import IoTHubDeviceClient, MethodResponse

from azure_device import make_client, say, say_command, say_connection, say_desired, say_method, telemetry


def main():
    client = make_client(IoTHubDeviceClient)
    client.connect()
    client.send_message(telemetry())
    say("telemetry acknowledged")
    say("twin", json.dumps(client.get_twin()))
    client.patch_twin_reported_properties({"answer": 42})
    say("reported")

    def answer(request):
        say_method(request)
        client.send_method_response(MethodResponse.create_from_method_request(request, 200, {"echo": request.payload}))

    client.on_twin_desired_properties_patch_received = say_desired
    client.on_message_received = say_command
    client.on_method_request_received = answer
    client.on_connection_state_change = lambda: say_connection(client)
    # Setting a handler subscribes in the background; a request that follows is answered after it.
    client.get_twin()
    say("listening")
    threading.Event().wait()


main()
