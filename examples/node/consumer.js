// A zbroker topic to standard output, a JSON object a record.
//
//     node consumer.js [--servers HOST:PORT,…] [--from earliest|latest] [--until-end] TOPIC
//
// Stored records are fetched over DEALER, new ones come over SUB the moment they are committed. SUB
// may drop, so it is never trusted: a pushed batch counts only where it continues what was read; any
// gap, and any beacon that names a higher high watermark, sends the consumer back to fetching. What
// was read already is dropped. So every record comes once and in order. See "Push, and the splice"
// in docs/protocol.md.

import { parseArgs } from 'node:util'
import { decode } from '@msgpack/msgpack'
import { Subscriber } from 'zeromq'
import { Cluster, decodeBatches } from './wire.js'

/** One partition: where its reader is, and how it gets on. */
class Reader {
  constructor (cluster, partition, position, end) {
    Object.assign(this, { cluster, partition, position, end, epoch: -1, leaderEpoch: -1, known: 0, fetching: null })
    this.done = new Promise(resolve => { this.finish = resolve })
  }

  /** Hands over what of some batches has not been read yet. */
  take (chunk) {
    for (const { base, next, epoch, records } of decodeBatches(chunk)) {
      if (next <= this.position) continue // read already
      for (const record of records) {
        if (record.offset >= this.position && record.offset < this.end) {
          print(this.cluster.topic, this.partition, record)
        }
      }
      this.position = next
      this.epoch = epoch
    }
  }

  /** Fetches until nothing is missing any more; pushes that come meanwhile only say how far that is. */
  fetch () {
    this.fetching ??= this.fetchAll().finally(() => { this.fetching = null })
    return this.fetching
  }

  async fetchAll () {
    let high
    do {
      const { position: offset, epoch } = this
      const [reply, chunk] = await this.cluster.ask('fetch', this.partition, { offset, epoch })
      this.take(chunk)
      this.position = Math.max(this.position, reply.next ?? 0) // gaps that compaction left are covered too
      if (reply.next_epoch >= 0) this.epoch = reply.next_epoch
      high = reply.high_watermark ?? 0
    } while (this.position < Math.min(this.end, Math.max(high, this.known)))
    if (this.position >= this.end) this.finish()
  }

  /** A pushed batch, or a beacon without one. */
  async onPush (head, batch) {
    if (head.topic_id !== this.cluster.id) return // the topic was made again under its old name
    if (head.epoch < this.leaderEpoch) return // from a node that does not know yet that it leads no more
    this.leaderEpoch = head.epoch
    this.known = Math.max(this.known, head.high_watermark ?? 0)
    if (this.fetching) return
    if (batch && Number(batch.readBigInt64LE(60)) <= this.position) this.take(batch)
    if (this.position < this.known) await this.fetch()
  }
}

const SILENCE = 5000 // ms: beacons come every 500, so that this long without one means a dead connection

async function subscribe (cluster, readers) {
  for (;;) {
    const socket = new Subscriber({ linger: 0 })
    for (const { host, port } of cluster.nodes) socket.connect(`tcp://${host}:${port + 1}`) // any may lead one day
    for (const { partition } of readers) socket.subscribe(`${cluster.topic}/${partition}/`)
    let heard = Date.now()
    const watch = setInterval(() => { if (Date.now() - heard > SILENCE) socket.close() }, 500)
    for await (const [, head, batch] of socket) {
      heard = Date.now()
      const pushed = decode(head)
      if ((pushed.v ?? 1) === 1) readers[pushed.partition ?? 0].onPush(pushed, batch).catch(stop)
    }
    clearInterval(watch)
    await cluster.refresh().catch(() => {}) // begin anew, perhaps at other addresses
  }
}

function print (topic, partition, { offset, timestamp, key, value, headers }) {
  const line = { topic, partition, offset, timestamp, key: text(key), value: text(value) }
  line.headers = headers.map(([name, value]) => [name, text(value)])
  process.stdout.write(JSON.stringify(line) + '\n')
}

function text (bytes) {
  if (bytes === null) return null
  const buffer = Buffer.from(bytes)
  const decoded = buffer.toString()
  return Buffer.from(decoded).equals(buffer) ? decoded : { base64: buffer.toString('base64') }
}

function stop (error) {
  console.error(`consumer.js: ${error.message}`)
  process.exit(1)
}

async function main () {
  const { values: options, positionals: [topic] } = parseArgs({
    allowPositionals: true,
    options: {
      servers: { type: 'string', default: 'localhost:5550' },
      from: { type: 'string', default: 'latest' },
      'until-end': { type: 'boolean', default: false }
    }
  })
  if (!topic) throw new Error('see the first lines of this file')
  const cluster = new Cluster(options.servers, topic)
  await cluster.refresh()
  const readers = await Promise.all(cluster.leaders.map(async (_, partition) => {
    const [reply] = await cluster.ask('offsets', partition, { at: options.from })
    const end = options['until-end'] ? reply.high_watermark ?? 0 : Infinity
    return new Reader(cluster, partition, reply.offset ?? 0, end)
  }))
  if (!options['until-end']) subscribe(cluster, readers).catch(stop)
  await Promise.all(readers.map(reader => reader.fetch()))
  await Promise.all(readers.map(reader => reader.done))
  cluster.close()
}

main().catch(stop)
