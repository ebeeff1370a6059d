"""A device on Azure's SDK, unmodified: its asyncio client. `azure_device.py` says what the argument is.

It prints a line for each thing that happened and then keeps listening. The test reads the lines, changes the twin, calls
methods, kills nodes. Nothing here connects or subscribes again.
"""

import asyncio
import json

from azure.iot.device import MethodResponse
from azure.iot.device.aio import IoTHubDeviceClient

from azure_device import make_client, say, say_command, say_connection, say_desired, say_method, telemetry


async def main():
    client = make_client(IoTHubDeviceClient)
    await client.connect()
    await client.send_message(telemetry())
    say("telemetry acknowledged")
    say("twin", json.dumps(await client.get_twin()))
    await client.patch_twin_reported_properties({"answer": 42})
    say("reported")

    async def answer(request):
        say_method(request)
        response = MethodResponse.create_from_method_request(request, 200, {"echo": request.payload})
        await client.send_method_response(response)

    client.on_twin_desired_properties_patch_received = say_desired
    client.on_message_received = say_command
    client.on_method_request_received = answer
    client.on_connection_state_change = lambda: say_connection(client)
    # Setting a handler subscribes in the background; a request that follows is answered after it.
    await client.get_twin()
    say("listening")
    await asyncio.Event().wait()


asyncio.run(main())
