// Kafka's Java client under load; see bench/load.py for the words.
// Its producer is tuned as its users tune it for throughput: batches of 256 KiB, 5 ms linger, idempotent, acks=all.

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.Callback;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.PartitionInfo;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public class KafkaLoad {
    static final AtomicLong failed = new AtomicLong();
    static final Callback DONE = (where, error) -> {
        if (error != null) failed.incrementAndGet();
    };

    static KafkaProducer<byte[], byte[]> producer() {
        Properties p = new Properties();
        p.put("bootstrap.servers", Words.word("servers", ""));
        p.put("acks", "all");
        p.put("batch.size", 262144);
        p.put("linger.ms", Words.number("linger", 5));
        p.put("buffer.memory", 67108864);
        p.put("max.request.size", 4 << 20);
        p.put("compression.type", Words.word("compression", "none"));
        return new KafkaProducer<>(p, new ByteArraySerializer(), new ByteArraySerializer());
    }

    static KafkaConsumer<byte[], byte[]> consumer() {
        Properties p = new Properties();
        p.put("bootstrap.servers", Words.word("servers", ""));
        p.put("max.poll.records", 10000);
        return new KafkaConsumer<>(p, new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    static List<String> topics() {
        int count = Words.number("topics", 1);
        String topic = Words.word("topic", "");
        List<String> names = new ArrayList<>();
        for (int n = 0; n < count; n++) names.add(count > 1 ? topic + "-" + n : topic);
        return names;
    }

    static List<TopicPartition> places(KafkaConsumer<byte[], byte[]> consumer) {
        List<TopicPartition> places = new ArrayList<>();
        for (String topic : topics())
            for (PartitionInfo part : consumer.partitionsFor(topic)) places.add(new TopicPartition(topic, part.partition()));
        return places;
    }

    static void check() {
        if (failed.get() > 0) throw new IllegalStateException(failed + " records failed");
    }

    static void produce() throws Exception {
        byte[][] ring = Words.ring();
        byte[] warm = Words.warm();
        List<String> topics = topics();
        try (KafkaProducer<byte[], byte[]> producer = producer()) {
            long until = System.nanoTime() + Words.number("warm_ms", 0) * 1_000_000L;
            do {
                for (String topic : topics) producer.send(new ProducerRecord<>(topic, warm), DONE);
            } while (System.nanoTime() < until);
            producer.flush();
            Words.gate();
            long start = System.nanoTime(), end = start + Words.number("seconds_ms", 1000) * 1_000_000L, records = 0;
            do {
                for (byte[] value : ring)
                    producer.send(new ProducerRecord<>(topics.get((int) (records++ % topics.size())), value), DONE);
            } while (System.nanoTime() < end);
            producer.flush();
            end = System.nanoTime();
            check();
            Words.end(Words.rate(start, end, records));
        }
    }

    static void consume() throws Exception {
        Words.Checker seen = new Words.Checker();
        boolean all = Words.word("check", "ends").equals("all");
        long wanted = Words.wanted(), records = 0, warm = 0, quiet = System.nanoTime();
        Words.gate();
        long start = 0, before = 0;
        try (KafkaConsumer<byte[], byte[]> consumer = consumer()) {
            List<TopicPartition> places = places(consumer);
            consumer.assign(places);
            consumer.seekToBeginning(places);
            while (records < wanted) {
                boolean some = false;
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
                    byte[] value = record.value();
                    some = true;
                    if ((value[0] & 255) == Words.WARM) warm++;
                    else {
                        if (all) seen.take(record.topic().hashCode() * 31 + record.partition(), value);
                        records++;
                    }
                }
                if (some && start == 0) {
                    start = System.nanoTime();
                    before = records + warm;
                }
                if (some) quiet = System.nanoTime();
                else if (System.nanoTime() - quiet > 20e9) throw new IllegalStateException("only " + records + " came");
            }
            long end = System.nanoTime();
            if (all) seen.finish();
            if (records != wanted) throw new IllegalStateException(records + " came, sent " + wanted);
            Words.end(Words.rate(start, end, records + warm - before));
        }
    }

    static void live() throws Exception {
        int count = Words.number("consumers", 1), length = Words.ring().length;
        CountDownLatch up = new CountDownLatch(count), down = new CountDownLatch(count);
        AtomicLong wanted = new AtomicLong(Long.MAX_VALUE), last = new AtomicLong();
        for (int c = 0; c < count; c++) {
            new Thread(() -> {
                try (KafkaConsumer<byte[], byte[]> consumer = consumer()) {
                    List<TopicPartition> places = places(consumer);
                    consumer.assign(places);
                    consumer.seekToEnd(places);
                    for (TopicPartition place : places) consumer.position(place);
                    up.countDown();
                    long records = 0;
                    while (records < wanted.get()) {
                        for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(100))) {
                            byte[] value = record.value();
                            if ((value[0] & 255) == Words.WARM) continue;
                            if (Words.numberIn(value) != records++ % length) throw new IllegalStateException("out of order");
                            last.accumulateAndGet(System.nanoTime(), Math::max);
                        }
                    }
                    down.countDown();
                } catch (Throwable error) {
                    error.printStackTrace();
                    Runtime.getRuntime().halt(1);
                }
            }).start();
        }
        up.await();
        wanted.set(Long.parseLong(Words.gate()));
        down.await();
        Words.end(Words.rate(0, last.get(), wanted.get() * count));
    }

    static void latencyProduce() throws Exception {
        int rate = Words.number("rate", 1000), count = rate * Words.number("seconds", 1);
        String topic = Words.word("topic", "");
        try (KafkaProducer<byte[], byte[]> producer = producer()) {
            producer.send(new ProducerRecord<>(topic, Words.warm())).get();
            Words.gate();
            long start = System.nanoTime() + 1_000_000;
            for (int n = 0; n < count; n++) {
                long due = start + n * 1_000_000_000L / rate;
                Words.waitUntil(due);
                producer.send(new ProducerRecord<>(topic, Words.stamped(n, due)), DONE);
            }
            producer.flush();
            check();
            Words.end("{\"records\":" + count + "}");
        }
    }

    static void latencyConsume() throws Exception {
        Words.Latencies found = new Words.Latencies();
        try (KafkaConsumer<byte[], byte[]> consumer = consumer()) {
            List<TopicPartition> places = places(consumer);
            consumer.assign(places);
            consumer.seekToEnd(places);
            for (TopicPartition place : places) consumer.position(place);
            Words.gate();
            while (true)
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(1)))
                    if (found.take(record.value())) Words.end(found.json());
        }
    }

    static void act(String action) throws Exception {
        switch (action) {
            case "produce" -> produce();
            case "consume" -> consume();
            case "live" -> live();
            case "latency_produce" -> latencyProduce();
            case "latency_consume" -> latencyConsume();
            default -> throw new IllegalArgumentException(action);
        }
    }

    public static void main(String[] args) {
        Words.take(args);
        try {
            act(args[0]);
        } catch (Throwable error) {
            error.printStackTrace();
            Runtime.getRuntime().halt(1);
        }
    }
}
