// A device on Azure's SDK for Node, unmodified. The argument is a JSON object: `ca`, `port`, `websocket`, `connectionString`,
// and perhaps `certificate` and `key` (files) and `renewTokenAfter` (seconds).
//
// It prints a line for each thing that happened and then keeps listening, as device_sdk.py does.
'use strict';

const fs = require('fs');
const tls = require('tls');
const { Client, Message, SharedAccessKeyAuthenticationProvider } = require('azure-iot-device');
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

function makeClient({ websocket, connectionString, renewTokenAfter }) {
  const transport = websocket ? MqttWs : Mqtt;
  if (!renewTokenAfter) {
    return Client.fromConnectionString(connectionString, transport);
  }
  // A token that is valid for twice as long as it is used: whoever did not renew would be disconnected for it.
  const tokens = SharedAccessKeyAuthenticationProvider.fromConnectionString(
    connectionString,
    2 * renewTokenAfter,
    renewTokenAfter
  );
  const client = Client.fromAuthenticationProvider(tokens, transport);
  tokens.on('newTokenAvailable', () => say('renewed'));
  return client;
}

// With every system property; those that this SDK has no field for go by the keys that they have in a topic.
function telemetry() {
  const message = new Message('hello from the SDK');
  message.messageId = 'm 1/ü';
  message.correlationId = 'c&1';
  message.userId = 'u=1';
  message.to = '/back/end';
  message.contentType = 'text/plain';
  message.contentEncoding = 'utf-8';
  message.expiryTimeUtc = new Date('2030-01-02T03:04:05Z');
  message.setAsSecurityMessage();
  message.properties.add('color', 'light blue');
  message.properties.add('dt-subject', 'thermostat1');
  message.properties.add('iothub-creation-time-utc', '2026-01-02T03:04:05Z');
  message.properties.add('$.on', 'output-1');
  message.properties.add('$.schema', 'recordType');
  message.properties.add('$.diagid', 'trace-1');
  message.properties.add('$.diagctx', 'creationtimeutc=1,k=v');
  return message;
}

function propertiesOf(command) {
  const { properties } = command;
  const list = Array.from({ length: properties.count() }, (_, index) => properties.getItem(index));
  return Object.fromEntries(list.map(({ key, value }) => [key, value]));
}

async function main(given) {
  usePort(given.port);
  const client = makeClient(given);
  const options = { ca: fs.readFileSync(given.ca, 'ascii') };
  if (given.certificate) {
    options.cert = fs.readFileSync(given.certificate, 'ascii');
    options.key = fs.readFileSync(given.key, 'ascii');
  }
  await client.setOptions(options);
  await client.open();

  await client.sendEvent(telemetry());
  say('telemetry acknowledged');

  const twin = await client.getTwin();
  say('twin', { desired: twin.properties.desired });
  await new Promise((resolve, reject) => {
    twin.properties.reported.update({ answer: 42 }, (error) => (error ? reject(error) : resolve()));
  });
  say('reported');

  client.on('message', (command) => {
    const body = command.data.toString();
    say('command', { body, id: command.messageId, type: command.contentType, properties: propertiesOf(command) });
    client.complete(command, () => {});
  });
  client.onDeviceMethod('blink', ({ methodName, payload }, response) => {
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
