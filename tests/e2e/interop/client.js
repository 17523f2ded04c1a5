// The cases of gRPC's interoperability tests, as far as they apply, with grpc-js: node client.js ADDRESS FOLDER.
// Each case prints its name and "ok", or what happened. Messages are bytes; FOLDER has the requests.
'use strict';
const fs = require('fs');
const path = require('path');
const grpc = require('@grpc/grpc-js');

const [address, folder] = process.argv.slice(2);
const request = (name) => fs.readFileSync(path.join(folder, name));
const same = (data) => data;
const service = '/inference.GRPCInferenceService/';
const insecure = grpc.credentials.createInsecure();
const client = new grpc.Client(address, insecure);
const compressing = new grpc.Client(address, insecure, { 'grpc.default_compression_algorithm': 2 });

const soon = () => ({ deadline: Date.now() + 30000 });

function unary(where, data, metadata = new grpc.Metadata(), by = client) {
  return new Promise((resolve, reject) => {
    by.makeUnaryRequest(where, same, same, data, metadata, soon(), (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

async function answered(method, name, least, by = client) {
  const answer = await unary(service + method, request(name), new grpc.Metadata(), by);
  if (answer.length < least) throw new Error(`an answer of ${answer.length} bytes`);
}

const bidi = (metadata = new grpc.Metadata(), options = soon()) =>
  client.makeBidiStreamRequest(`${service}ModelStreamInfer`, same, same, metadata, options);

// The next answer of a stream; null: its end.
const next = (stream) => new Promise((resolve, reject) => {
  const done = (settle) => (value) => { stream.removeAllListeners(); stream.on('error', () => {}); stream.pause(); settle(value); };
  stream.once('data', done(resolve));
  stream.once('end', done(() => resolve(null)));
  stream.once('error', done(reject));
  stream.resume();
});

async function expect(promise, code, words = '') {
  let found;
  try {
    await promise;
  } catch (error) {
    found = error;
  }
  if (!found || found.code !== code || !found.details.includes(words)) throw new Error(`${found} is not ${code} with ${words}`);
}

async function pingPong(times, metadata) {
  const stream = bidi(metadata);
  for (; times > 0; times--) {
    stream.write(request('small'));
    const answer = await next(stream);
    if (!answer || !answer.length) throw new Error('an empty answer');
  }
  stream.end();
  if ((await next(stream)) !== null) throw new Error('an answer too many');
}

async function cancelled(answers) {
  const stream = bidi();
  for (; answers > 0; answers--) {
    stream.write(request('small'));
    await next(stream);
  }
  const ended = new Promise((resolve, reject) => { stream.once('error', reject); stream.once('end', resolve); stream.resume(); });
  stream.cancel();
  await expect(ended, grpc.status.CANCELLED);
}

const cases = {
  empty_unary: () => answered('ServerLive', 'empty', 2),
  large_unary: () => answered('ModelInfer', 'large', 271828),
  client_compressed_unary: () => answered('ModelInfer', 'large', 271828, compressing),
  server_streaming: async () => {
    const stream = client.makeServerStreamRequest('/grpc.health.v1.Health/Watch', same, same, request('empty'), new grpc.Metadata(), soon());
    const answer = await next(stream);
    stream.cancel();
    if (!answer || answer.length !== 2) throw new Error(`${answer}`);
  },
  ping_pong: () => pingPong(4),
  empty_stream: () => pingPong(0),
  cancel_after_begin: () => cancelled(0),
  cancel_after_first_response: () => cancelled(1),
  timeout_on_sleeping_server: () => expect(next(bidi(new grpc.Metadata(), { deadline: Date.now() + 50 })), grpc.status.DEADLINE_EXCEEDED),
  status_code_and_message: () => expect(unary(`${service}ModelInfer`, request('faulty')), grpc.status.INVALID_ARGUMENT, 'big'),
  special_status_message: () => expect(unary(`${service}ModelInfer`, request('special')), grpc.status.NOT_FOUND, '☺ 😈 100 %'),
  unimplemented_method: () => expect(unary(`${service}Nope`, request('empty')), grpc.status.UNIMPLEMENTED),
  unimplemented_service: () => expect(unary('/no.Service/Nope', request('empty')), grpc.status.UNIMPLEMENTED),
  custom_metadata: async () => {
    const metadata = new grpc.Metadata();
    metadata.set('x-grpc-test-echo-initial', 'test_initial_metadata_value');
    metadata.set('x-grpc-test-echo-trailing-bin', Buffer.from([0xab, 0xab, 0xab]));
    await unary(`${service}ModelInfer`, request('small'), metadata);
    await pingPong(1, metadata);
  },
  concurrent_large_unary: () => Promise.all(Array.from({ length: 50 }, () => answered('ModelInfer', 'large', 271828))),
};

(async () => {
  for (const [name, run] of Object.entries(cases)) {
    let said = 'ok';
    try {
      await run();
    } catch (error) {
      said = String(error);
    }
    console.log(`${name} ${said}`);
  }
  process.exit(0);
})();
