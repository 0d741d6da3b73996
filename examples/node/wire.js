// zbroker's wire in JavaScript: what producer.js and consumer.js share.
//
// Three parts, each a section of docs/protocol.md: the record batch ("The record batch"), asking a
// node ("Requests and replies"), and finding leaders and trying again ("Reliability").

import { crc32 } from 'node:zlib'
import { decode, encode } from '@msgpack/msgpack'
import * as zstd from '@bokuweb/zstd-wasm'
import * as lz4 from 'lz4js'
import { Dealer } from 'zeromq'

await zstd.init()

// The record batch ---

const HEADER = 88
export const CODECS = ['none', 'lz4', 'zstd'] // an index is a codec's number in the attributes
const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = (byte >>> 1) ^ (byte & 1 ? 0x82f63b78 : 0)
  return byte
})

/** CRC-32C of some pieces of data, one behind the other. */
export function crc32c (...pieces) {
  let crc = 0xffffffff
  for (const piece of pieces) {
    for (const byte of piece) crc = (crc >>> 8) ^ TABLE[(crc ^ byte) & 0xff]
  }
  return (crc ^ 0xffffffff) >>> 0
}

/** The partition of a record with a key, the same in every language: here it is the plain CRC-32. */
export const partitionOf = (key, partitions) => crc32(key) % partitions

/** A batch of records `{timestamp, key, value, headers}`, as a producer sends it. */
export function encodeBatch (records, { codec = 0, producerId = -1, epoch = -1, sequence = -1 } = {}) {
  const times = records.map(record => record.timestamp)
  const plain = encode(records.map(({ timestamp, key = null, value = null, headers = [] }) =>
    [timestamp - times[0], key, value, headers]))
  const payload = compressors[codec](plain)
  const batch = Buffer.alloc(HEADER + payload.length)
  batch.write('ZBAT', 0)
  batch.writeUInt8(1, 4) // version
  batch.writeUInt16LE(codec, 6) // attributes
  batch.writeUInt32LE(records.length, 8) // span
  batch.writeUInt32LE(payload.length, 12)
  batch.writeUInt32LE(plain.length, 16)
  batch.writeBigInt64LE(BigInt(times[0]), 20)
  batch.writeBigInt64LE(BigInt(times.reduce((one, other) => Math.max(one, other))), 28)
  batch.writeBigInt64LE(BigInt(producerId), 36)
  batch.writeBigInt64LE(BigInt(sequence), 44)
  batch.writeInt32LE(epoch, 52)
  batch.set(payload, HEADER)
  batch.writeUInt32LE(crc32c(batch.subarray(0, 56), batch.subarray(HEADER)), 56)
  return batch // bytes 60 to 87 are the leader's to fill
}

/** The whole batches of a chunk: `{base, next, epoch, records}` each, control batches without records. */
export function * decodeBatches (chunk) {
  for (let at = 0; chunk.length - at >= HEADER;) {
    const head = chunk.subarray(at, at + HEADER)
    if (head.toString('latin1', 0, 4) !== 'ZBAT' || head[4] !== 1) throw new Error('this is no batch')
    if (crc32c(head.subarray(0, 84)) !== head.readUInt32LE(84)) throw new Error('a batch header is damaged')
    const end = at + HEADER + head.readUInt32LE(12)
    if (end > chunk.length) return
    const payload = chunk.subarray(at + HEADER, end)
    if (crc32c(head.subarray(0, 56), payload) !== head.readUInt32LE(56)) throw new Error('a batch is damaged')
    const base = Number(head.readBigInt64LE(60))
    const span = head.readUInt32LE(8)
    yield { base, next: base + span, epoch: head.readInt32LE(76), records: recordsOf(head, payload, base) }
    at = end
  }
}

const compressors = [plain => plain, plain => lz4.compress(plain), plain => zstd.compress(plain)]
const decompressors = [
  payload => payload,
  (payload, length) => lz4.decompress(payload, length),
  (payload, length) => zstd.decompress(payload, { defaultHeapSize: length })
]

function recordsOf (head, payload, base) {
  const attributes = head.readUInt16LE(6)
  const stamp = head.readUInt16LE(80)
  const codec = attributes & 7
  if (attributes & 0x10) return [] // a control batch: for the nodes alone
  if (attributes & 0xe8 || stamp & 0xfe || !(codec in CODECS)) throw new Error('a batch has critical attributes')
  const length = head.readUInt32LE(16)
  const plain = decompressors[codec](payload, length)
  if (plain.length !== length) throw new Error('a batch holds more or less than it declares')
  const first = Number(head.readBigInt64LE(stamp & 1 ? 68 : 20)) // append time, or base timestamp
  return decode(plain).map((record, index) => record && { // nil: compaction removed it
    offset: base + index,
    timestamp: stamp & 1 ? first : first + record[0],
    key: record[1],
    value: record[2],
    headers: record[3]
  }).filter(record => record !== null)
}

// Requests and replies ---

/** An error that a node answered, or a request that it did not answer. */
export class BrokerError extends Error {
  constructor ({ code, message = '', hint = 'give_up', details = {} }) {
    super(`${message} (${code})`)
    Object.assign(this, { code, hint, details })
  }
}

/** A DEALER socket to one node; many requests may be under way, and each gets its own answer. */
class Connection {
  constructor (address) {
    this.address = address
    this.number = 0
    this.open()
  }

  open () {
    this.socket = new Dealer({ linger: 0, sendHighWaterMark: 100 })
    this.socket.connect(`tcp://${this.address}`)
    this.waiting = new Map() // correlation number → what to do with the reply
    this.sending = Promise.resolve() // the socket takes one message after the other
    this.receive(this.socket, this.waiting)
    const lost = { op: 'error', code: 'lost', message: `${this.address} is gone`, hint: 'refresh' }
    const waiting = this.waiting
    this.socket.events.on('disconnect', () => { for (const answer of waiting.values()) answer(lost) })
  }

  async receive (socket, waiting) {
    for await (const [head, body] of socket) {
      const reply = decode(head)
      waiting.get(reply.id ?? 0)?.(reply, body)
    }
  }

  /** Sends a request; resolves to `[reply, body]`, rejects with a BrokerError. */
  request (op, fields = {}, body = null, patience = 10_000) {
    const { socket, waiting } = this
    const id = ++this.number
    return new Promise((resolve, reject) => {
      const fail = error => { waiting.delete(id); clearTimeout(timer); reject(new BrokerError(error)) }
      const timer = setTimeout(() => {
        if (this.socket === socket) { this.close(); this.open() } // it may be stuck: begin anew
        fail({ code: 'timed_out', message: `${this.address} did not answer`, hint: 'refresh' })
      }, patience)
      waiting.set(id, (reply, body) => {
        if (reply.op === 'error') return fail(reply)
        waiting.delete(id)
        clearTimeout(timer)
        resolve([reply, body])
      })
      const frames = [encode({ op, id, ...fields }), ...(body ? [body] : [])]
      this.sending = this.sending.then(() => socket.send(frames)).catch(() => {})
    })
  }

  close () { this.socket.close() }
}

// Reliability ---

const pause = ms => new Promise(resolve => setTimeout(resolve, ms))

/** The cluster as a client sees it: one topic, its leaders, and connections to them. */
export class Cluster {
  constructor (servers, topic) {
    Object.assign(this, { servers: servers.split(','), topic, connections: new Map() })
  }

  connection (address) {
    if (!this.connections.has(address)) this.connections.set(address, new Connection(address))
    return this.connections.get(address)
  }

  /** Asks the servers in turn who leads what. */
  async refresh () {
    let problem
    for (const server of this.servers) {
      try {
        const [reply] = await this.connection(server).request('metadata', { topics: [this.topic] }, null, 3000)
        const { error, topic_id: id, partitions = [] } = reply.topics[0]
        if (error) throw new BrokerError({ code: error, message: `topic ${this.topic}`, hint: 'give_up' })
        const nodes = new Map(reply.nodes.map(node => [node.name, node]))
        this.id = id
        this.nodes = [...nodes.values()]
        this.leaders = partitions.map(({ leader }) => nodes.get(leader))
        return
      } catch (error) {
        if (error.hint === 'give_up') throw error
        problem = error
      }
    }
    throw problem
  }

  /** One request to a partition's leader, tried again for two minutes as its errors advise. */
  async ask (op, partition, fields = {}, body = null) {
    const end = Date.now() + 120_000
    for (let wait = 50; ; wait = Math.min(wait * 2, 1000)) {
      try {
        if (!this.leaders) await this.refresh()
        const node = this.leaders[partition]
        if (!node) throw new BrokerError({ code: 'not_leader', message: 'there is no leader', hint: 'refresh' })
        const where = { topic: this.topic, topic_id: this.id, partition }
        return await this.connection(`${node.host}:${node.port}`).request(op, { ...where, ...fields }, body)
      } catch (error) {
        if (!(error instanceof BrokerError) || error.hint === 'give_up' || Date.now() > end) throw error
        if (error.hint === 'refresh') this.leaders = null
      }
      await pause(wait * (0.8 + 0.4 * Math.random()))
    }
  }

  close () { for (const connection of this.connections.values()) connection.close() }
}
