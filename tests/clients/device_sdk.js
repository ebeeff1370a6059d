// A device on Azure's SDK for Node, unmodified: device_sdk.js CA PORT mqtt|websocket CONNECTION_STRING [CERTIFICATE KEY]
//
// It prints a line for each thing that happened and then keeps listening, as device_sdk.py does.
'use strict';

const fs = require('fs');
const tls = require('tls');
const { Client, Message } = require('azure-iot-device');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');

// The SDK dials 8883 or 443 and has no option for another port: the sockets below it are told here, as a redirect of the
// port would do it. Nothing else of the SDK is touched.
function usePort(port) {
  const connect = tls.connect;
  tls.connect = (options, ...more) => connect({ ...options, port }, ...more);
}

function say(what, value = '') {
  console.log(what, value);
}

async function main(ca, port, transport, connectionString, certificate, key) {
  usePort(Number(port));
  const client = Client.fromConnectionString(connectionString, transport === 'websocket' ? MqttWs : Mqtt);
  const options = { ca: fs.readFileSync(ca, 'ascii') };
  if (certificate) {
    options.cert = fs.readFileSync(certificate, 'ascii');
    options.key = fs.readFileSync(key, 'ascii');
  }
  await client.setOptions(options);
  await client.open();

  const message = new Message('hello from the SDK');
  message.properties.add('color', 'light blue');
  message.contentType = 'text/plain';
  await client.sendEvent(message);
  say('telemetry acknowledged');

  const twin = await client.getTwin();
  say('twin', JSON.stringify({ desired: twin.properties.desired }));
  await new Promise((resolve, reject) => {
    twin.properties.reported.update({ answer: 42 }, (error) => (error ? reject(error) : resolve()));
  });
  say('reported');

  client.on('message', (command) => {
    say('command', JSON.stringify({ id: command.messageId, body: command.data.toString() }));
    client.complete(command, () => {});
  });
  // Each handler is called at once with what is known already.
  twin.on('properties.desired', (patch) => say('desired', JSON.stringify(patch)));
  await new Promise((resolve, reject) => twin.get((error) => (error ? reject(error) : resolve())));
  say('listening');
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
