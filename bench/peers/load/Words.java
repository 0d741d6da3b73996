// What the load generators in Java share: the words of bench/load.py. One file, no packages.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.locks.LockSupport;

final class Words {
    static final int WARM = 255, HEAD = 4;
    private static final Map<String, String> TOLD = new HashMap<>();
    private static final BufferedReader IN = new BufferedReader(new InputStreamReader(System.in));

    static void take(String[] args) {
        for (int k = 1; k < args.length; k++) {
            String[] pair = args[k].split("=", 2);
            TOLD.put(pair[0], pair[1]);
        }
    }

    static String word(String name, String otherwise) {
        return TOLD.getOrDefault(name, otherwise);
    }

    static int number(String name, int otherwise) {
        return Integer.parseInt(word(name, "" + otherwise));
    }

    static String gate() throws Exception {
        System.out.println("ready");
        System.out.flush();
        String line = IN.readLine();
        if (line == null) Runtime.getRuntime().halt(1);
        return line.trim();
    }

    /** Prints what came of it and ends, whatever threads a library has left. */
    static void end(String json) {
        System.out.println(json);
        System.out.flush();
        Runtime.getRuntime().halt(0);
    }

    static byte[][] ring() throws Exception {
        int size = number("size", 100), producer = number("producer", 0);
        byte[] whole = Files.readAllBytes(Path.of(word("ring", "")));
        byte[][] values = new byte[whole.length / size][];
        for (int n = 0; n < values.length; n++) {
            values[n] = Arrays.copyOfRange(whole, n * size, (n + 1) * size);
            values[n][0] = (byte) producer;
        }
        return values;
    }

    static byte[] warm() {
        byte[] value = new byte[number("size", 100)];
        value[0] = (byte) WARM;
        return value;
    }

    static int numberIn(byte[] value) {
        return (value[1] & 255) << 16 | (value[2] & 255) << 8 | value[3] & 255;
    }

    static void waitUntil(long due) {
        long left;
        while ((left = due - System.nanoTime()) > 0) LockSupport.parkNanos(left);
    }

    static byte[] stamped(int number, long due) {
        byte[] value = new byte[number("size", 100)];
        ByteBuffer.wrap(value).putInt(number & 0xFFFFFF).order(ByteOrder.LITTLE_ENDIAN).putLong(due);
        return value;
    }

    /** What was read against what was sent; as Checker in bench/load.py. */
    static final class Checker {
        final byte[][] ring;
        final boolean strict = number("lanes", 1) == 1;
        final Map<Integer, Map<Integer, Integer>> last = new HashMap<>();
        final Map<Integer, int[]> seen = new HashMap<>();
        long records, warm;

        Checker() throws Exception {
            ring = ring();
        }

        void take(int lane, byte[] value) {
            int producer = value[0] & 255;
            if (producer == WARM) {
                warm++;
                return;
            }
            int number = numberIn(value), length = ring.length;
            Integer before = last.computeIfAbsent(lane, x -> new HashMap<>()).put(producer, number);
            if (before == null && strict) before = -1;
            if (before != null) {
                int step = Math.floorMod(number - before, length);
                if (step == 0) step = length;
                if (step != 1 && (strict || step > length * 3 / 4))
                    throw new IllegalStateException("after " + before + " of producer " + producer + " came " + number);
            }
            if (!Arrays.equals(value, 1, value.length, ring[number], 1, value.length))
                throw new IllegalStateException("record " + number + " was changed");
            seen.computeIfAbsent(producer, x -> new int[length])[number]++;
            records++;
        }

        void finish() {
            String[] counts = word("counts", "0").split(",");
            for (int p = 0; p < counts.length; p++) {
                long count = Long.parseLong(counts[p]);
                int[] times = seen.getOrDefault(p, new int[ring.length]);
                for (int n = 0; n < times.length; n++) {
                    long sent = count / ring.length + (n < count % ring.length ? 1 : 0);
                    if (times[n] != sent)
                        throw new IllegalStateException("record " + n + " came " + times[n] + " times, sent " + sent);
                }
            }
        }
    }

    static long wanted() {
        long sum = 0;
        for (String count : word("counts", "0").split(",")) sum += Long.parseLong(count);
        return sum;
    }

    /** Latencies from when each record was due; those of the first second are left out. */
    static final class Latencies {
        final int count = number("rate", 1000) * number("seconds", 1), skip = number("rate", 1000) * number("skip", 1);
        final long[] found = new long[count];
        volatile int records;

        boolean take(byte[] value) {
            if ((value[0] & 255) == WARM) return false;
            long now = System.nanoTime();
            int n = records;
            if (numberIn(value) != (n & 0xFFFFFF)) throw new IllegalStateException("instead of record " + n + " came " + numberIn(value));
            found[n] = now - ByteBuffer.wrap(value).order(ByteOrder.LITTLE_ENDIAN).getLong(HEAD);
            records = n + 1;
            return n + 1 == count;
        }

        String json() {
            long[] kept = Arrays.copyOfRange(found, skip, count);
            Arrays.sort(kept);
            StringBuilder text = new StringBuilder("{\"records\":" + records);
            String[] names = {"p50", "p90", "p99", "p99.9", "worst"};
            double[] shares = {0.5, 0.9, 0.99, 0.999, 1};
            for (int k = 0; k < names.length; k++)
                text.append(String.format(Locale.ROOT, ",\"%s\":%.3f", names[k], kept[Math.min(kept.length - 1, (int) (kept.length * shares[k]))] / 1e6));
            return text.append("}").toString();
        }
    }

    static String rate(long start, long end, long records) {
        return "{\"start\":" + start + ",\"end\":" + end + ",\"records\":" + records + "}";
    }
}
