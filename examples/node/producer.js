// Standard input into a zbroker topic, a record a line: `key<TAB>value`, or a value alone.
//
//     node producer.js [--servers HOST:PORT,…] [--compression none|lz4|zstd] [--header NAME=VALUE]… TOPIC
//
// Idempotent: the node gives a producer id, every batch carries it with an epoch and the sequence
// number of its first record, and a batch that is sent again after an error is the same batch,
// byte for byte. So each record is in the log once and in order, whatever is lost on the way. A
// producer may have up to five batches under way in a partition; to keep this file short, this one
// waits for each before it sends the partition's next. See "Producing" in docs/protocol.md.

import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { CODECS, Cluster, encodeBatch, partitionOf } from './wire.js'

const RECORDS_MAX = 1000 // in a batch
const BYTES_MAX = 256 * 1024 // of values and keys in a batch
const QUEUED_MAX = 4 // batches of a partition that wait for their turn

/** The records of one partition: those that wait, and the batches under way. */
class Lane {
  constructor (cluster, partition, producer, codec) {
    Object.assign(this, { cluster, partition, producer, codec })
    this.sequence = 0 // of the next record
    this.queued = 0
    this.tail = Promise.resolve() // done when the last batch is acknowledged
    this.clear()
  }

  clear () { Object.assign(this, { records: [], bytes: 0 }) }

  /** Adds a record; the promise is there to slow the reader down when the node is slow. */
  async add (record) {
    this.records.push(record)
    this.bytes += record.value.length + (record.key?.length ?? 0)
    if (this.records.length >= RECORDS_MAX || this.bytes >= BYTES_MAX) this.send()
    if (this.queued >= QUEUED_MAX) await this.tail
  }

  /** Closes the batch and puts it behind those under way. */
  send () {
    if (!this.records.length) return
    const batch = encodeBatch(this.records, { ...this.producer, codec: this.codec, sequence: this.sequence })
    const count = this.records.length
    this.sequence += count
    this.queued++
    this.clear()
    this.tail = this.tail.then(async () => {
      const [reply] = await this.cluster.ask('produce', this.partition, { acks: 'all' }, batch)
      this.queued--
      console.log(`partition ${this.partition}: ${count} records at offset ${reply.base_offset}`)
    })
    this.tail.catch(() => {}) // reported where it is awaited
  }
}

async function main () {
  const { values: options, positionals: [topic] } = parseArgs({
    allowPositionals: true,
    options: {
      servers: { type: 'string', default: 'localhost:5550' },
      compression: { type: 'string', default: 'none' },
      header: { type: 'string', multiple: true, default: [] }
    }
  })
  const codec = CODECS.indexOf(options.compression)
  if (!topic || codec < 0) throw new Error('see the first lines of this file')
  const headers = options.header.map(text => {
    const [name, ...value] = text.split('=')
    return [name, Buffer.from(value.join('='))]
  })

  const cluster = new Cluster(options.servers, topic)
  await cluster.refresh()
  const [{ producer_id: producerId, producer_epoch: epoch = 0 }] = await cluster.ask('init_producer', 0)
  const lanes = cluster.leaders.map((_, partition) => new Lane(cluster, partition, { producerId, epoch }, codec))

  let turn = 0
  for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
    const cut = line.indexOf('\t')
    const key = cut < 0 ? null : Buffer.from(line.slice(0, cut))
    const value = Buffer.from(line.slice(cut + 1))
    const partition = key ? partitionOf(key, lanes.length) : turn++ % lanes.length
    await lanes[partition].add({ timestamp: Date.now(), key, value, headers })
  }
  for (const lane of lanes) lane.send()
  await Promise.all(lanes.map(lane => lane.tail))
  cluster.close()
}

main().catch(error => {
  console.error(`producer.js: ${error.message}`)
  process.exit(1)
})
