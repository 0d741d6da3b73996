// RabbitMQ's stream client for Java under load; see bench/load.py for the words.
// Bodies are the bytes themselves, as rstream sends them. Its producer is at its defaults (100 records a batch, 10,000 unconfirmed); sub=100 packs so many into one entry.

import com.rabbitmq.stream.ConfirmationHandler;
import com.rabbitmq.stream.Environment;
import com.rabbitmq.stream.MessageHandler;
import com.rabbitmq.stream.OffsetSpecification;
import com.rabbitmq.stream.Producer;
import com.rabbitmq.stream.codec.SimpleCodec;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;

public class RabbitLoad {
    static final AtomicLong confirmed = new AtomicLong(), failed = new AtomicLong();
    static final ConfirmationHandler DONE = status -> {
        if (!status.isConfirmed()) failed.incrementAndGet();
        confirmed.incrementAndGet();
    };

    static Environment environment() {
        return Environment.builder().codec(new SimpleCodec()).uri("rabbitmq-stream://guest:guest@localhost:" + Words.word("servers", "").split(",")[0].split(":")[1]).build();
    }

    static Producer producer(Environment environment) {
        int sub = Math.min(Words.number("sub", 1), Math.max(1, (256 << 10) / Words.number("size", 100)));
        return environment.producerBuilder().stream(Words.word("topic", "")).subEntrySize(sub).build();
    }

    static void send(Producer producer, byte[] value) {
        producer.send(producer.messageBuilder().addData(value).build(), DONE);
    }

    static void await(AtomicLong count, long wanted) {
        long quiet = System.nanoTime(), before = -1;
        while (count.get() < wanted) {
            if (count.get() != before) {
                before = count.get();
                quiet = System.nanoTime();
            }
            if (System.nanoTime() - quiet > 30e9) throw new IllegalStateException("only " + count + " of " + wanted);
            LockSupport.parkNanos(100_000);
        }
        if (failed.get() > 0) throw new IllegalStateException(failed + " records failed");
    }

    static void produce() throws Exception {
        byte[][] ring = Words.ring();
        byte[] warm = Words.warm();
        Producer producer = producer(environment());
        long until = System.nanoTime() + Words.number("warm_ms", 0) * 1_000_000L, sent = 0;
        do {
            send(producer, warm);
            sent++;
        } while (System.nanoTime() < until);
        await(confirmed, sent);
        Words.gate();
        long start = System.nanoTime(), end = start + Words.number("seconds_ms", 1000) * 1_000_000L, records = 0;
        do {
            for (byte[] value : ring) send(producer, value);
            records += ring.length;
        } while (System.nanoTime() < end);
        await(confirmed, sent + records);
        Words.end(Words.rate(start, System.nanoTime(), records));
    }

    static void consume() throws Exception {
        Words.Checker seen = new Words.Checker();
        boolean all = Words.word("check", "ends").equals("all");
        long wanted = Words.wanted();
        AtomicLong records = new AtomicLong(), warm = new AtomicLong(), first = new AtomicLong(), last = new AtomicLong();
        MessageHandler handler = (context, message) -> {
            byte[] value = message.getBodyAsBinary();
            if (first.get() == 0) first.set(System.nanoTime());
            if ((value[0] & 255) == Words.WARM) {
                warm.incrementAndGet();
                return;
            }
            if (all) {
                try {
                    seen.take(0, value);
                } catch (RuntimeException error) {
                    error.printStackTrace();
                    Runtime.getRuntime().halt(1);
                }
            }
            if (records.incrementAndGet() == wanted) last.set(System.nanoTime());
        };
        Words.gate();
        environment().consumerBuilder().stream(Words.word("topic", "")).offset(OffsetSpecification.first()).messageHandler(handler).build();
        await(records, wanted);
        while (last.get() == 0) LockSupport.parkNanos(10_000);
        if (all) seen.finish();
        Words.end(Words.rate(first.get(), last.get(), wanted + warm.get() - 1));
    }

    static void live() throws Exception {
        int count = Words.number("consumers", 1), length = Words.ring().length;
        AtomicLong received = new AtomicLong(), last = new AtomicLong();
        Environment environment = environment();
        for (int c = 0; c < count; c++) {
            AtomicLong mine = new AtomicLong();
            environment.consumerBuilder().stream(Words.word("topic", "")).offset(OffsetSpecification.next()).messageHandler((context, message) -> {
                byte[] value = message.getBodyAsBinary();
                if ((value[0] & 255) == Words.WARM) return;
                if (Words.numberIn(value) != mine.getAndIncrement() % length) {
                    System.err.println("out of order");
                    Runtime.getRuntime().halt(1);
                }
                received.incrementAndGet();
                last.set(System.nanoTime());
            }).build();
        }
        Thread.sleep(500);
        long wanted = Long.parseLong(Words.gate()) * count;
        await(received, wanted);
        if (received.get() != wanted) throw new IllegalStateException(received + " came, sent " + wanted);
        Words.end(Words.rate(0, last.get(), wanted));
    }

    static void latencyProduce() throws Exception {
        int rate = Words.number("rate", 1000), count = rate * Words.number("seconds", 1);
        Producer producer = environment().producerBuilder().stream(Words.word("topic", ""))
            .batchPublishingDelay(java.time.Duration.ZERO).build();
        send(producer, Words.warm());
        await(confirmed, 1);
        Words.gate();
        long start = System.nanoTime() + 1_000_000;
        for (int n = 0; n < count; n++) {
            long due = start + n * 1_000_000_000L / rate;
            Words.waitUntil(due);
            send(producer, Words.stamped(n, due));
        }
        await(confirmed, 1 + count);
        Words.end("{\"records\":" + count + "}");
    }

    static void latencyConsume() throws Exception {
        Words.Latencies found = new Words.Latencies();
        CountDownLatch over = new CountDownLatch(1);
        environment().consumerBuilder().stream(Words.word("topic", "")).offset(OffsetSpecification.next()).messageHandler((context, message) -> {
            if (found.take(message.getBodyAsBinary())) over.countDown();
        }).build();
        Thread.sleep(500);
        Words.gate();
        over.await();
        Words.end(found.json());
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
