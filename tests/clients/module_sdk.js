// A module on Azure's SDK for Node, unmodified. The argument is a JSON object: `ca`, `port`, `websocket`, `connectionString`.
//
// It prints a line for each thing that happened and then keeps listening, as device_sdk.py does.
'use strict';

const fs = require('fs');
const tls = require('tls');
const { Message, ModuleClient } = require('azure-iot-device');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');

// The SDK dials 8883 or 443 and has no option for another port: the sockets below it are told here, as a redirect of the
// port would do it. Nothing else of the SDK is touched.
function usePort(port) {
  const connect = tls.connect;
  tls.connect = (options, ...more) => connect({ ...options, port }, ...more);
}

function say(what, value = '') {
  console.log(what, typeof value === 'string' ? value : JSON.stringify(value));
}

async function main(given) {
  usePort(given.port);
  const client = ModuleClient.fromConnectionString(given.connectionString, given.websocket ? MqttWs : Mqtt);
  await client.setOptions({ ca: fs.readFileSync(given.ca, 'ascii') });
  await client.open();

  const message = new Message('hello from the SDK');
  message.properties.add('color', 'light blue');
  await client.sendOutputEvent('alarms', message);
  say('telemetry acknowledged');

  const twin = await client.getTwin();
  say('twin', { desired: twin.properties.desired });
  await new Promise((resolve, reject) => {
    twin.properties.reported.update({ answer: 42 }, (error) => (error ? reject(error) : resolve()));
  });
  say('reported');

  // Only other modules would send any, through a gateway: it is enough that the subscription is granted.
  client.on('inputMessage', (input) => say('input', input));
  client.onMethod('blink', ({ methodName, payload }, response) => {
    say('method', { name: methodName, payload });
    response.send(200, { echo: payload }, () => {});
  });
  // Each handler is called at once with what is known already.
  twin.on('properties.desired', (patch) => say('desired', patch));
  await new Promise((resolve, reject) => twin.get((error) => (error ? reject(error) : resolve())));
  say('listening');
}

main(JSON.parse(process.argv[2])).catch((error) => {
  console.error(error);
  process.exit(1);
});
