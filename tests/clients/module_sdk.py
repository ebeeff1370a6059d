"""A module on Azure's SDK for Python, unmodified: its asyncio client. `azure_device.py` says what the argument is.

It prints a line for each thing that happened and then keeps listening, as device_sdk.py does.
"""

import asyncio
import json

from azure.iot.device import MethodResponse
from azure.iot.device.aio import IoTHubModuleClient

from azure_device import make_client, say, say_connection, say_desired, say_method, telemetry


async def main():
    client = make_client(IoTHubModuleClient)
    await client.connect()
    await client.send_message_to_output(telemetry(), "alarms")
    say("telemetry acknowledged")
    say("twin", json.dumps(await client.get_twin()))
    await client.patch_twin_reported_properties({"answer": 42})
    say("reported")

    async def answer(request):
        say_method(request)
        response = MethodResponse.create_from_method_request(request, 200, {"echo": request.payload})
        await client.send_method_response(response)

    client.on_twin_desired_properties_patch_received = say_desired
    # Only other modules would send any, through a gateway: it is enough that the subscription is granted.
    client.on_message_received = lambda message: say("input", message.input_name)
    client.on_method_request_received = answer
    client.on_connection_state_change = lambda: say_connection(client)
    # Setting a handler subscribes in the background; a request that follows is answered after it.
    await client.get_twin()
    say("listening")
    await asyncio.Event().wait()


asyncio.run(main())
