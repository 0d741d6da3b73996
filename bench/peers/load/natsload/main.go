// NATS's Go client under load; see bench/load.py for the words.
// "fast" publishes with the client's fast batches (500 a batch, 10 unacknowledged), which is the quickest way that it
// has; "async" with PublishMsgAsync and 4000 in flight.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
	"golang.org/x/sys/unix"
)

const (
	warm = 255
	head = 4
)

var (
	told  = map[string]string{}
	input = bufio.NewReader(os.Stdin)
)

func word(name, otherwise string) string {
	if found, there := told[name]; there {
		return found
	}
	return otherwise
}

func number(name string, otherwise int) int {
	found, err := strconv.Atoi(word(name, strconv.Itoa(otherwise)))
	check(err)
	return found
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func fail(format string, args ...any) { check(fmt.Errorf(format, args...)) }

func now() int64 {
	var t unix.Timespec
	check(unix.ClockGettime(unix.CLOCK_MONOTONIC, &t))
	return t.Nano()
}

// The runtime's own sleep is as coarse as a millisecond.
func waitUntil(due int64) {
	for {
		left := due - now()
		if left <= 0 {
			return
		}
		t := unix.NsecToTimespec(left)
		unix.Nanosleep(&t, nil)
	}
}

func gate() string {
	fmt.Println("ready")
	line, err := input.ReadString('\n')
	check(err)
	return strings.TrimSpace(line)
}

func end(result map[string]any) {
	text, err := json.Marshal(result)
	check(err)
	fmt.Println(string(text))
	os.Exit(0)
}

func rate(start, stop, records int64) {
	end(map[string]any{"start": start, "end": stop, "records": records})
}

func ring() [][]byte {
	whole, err := os.ReadFile(word("ring", ""))
	check(err)
	size, producer := number("size", 100), byte(number("producer", 0))
	var values [][]byte
	for at := 0; at < len(whole); at += size {
		value := whole[at : at+size]
		value[0] = producer
		values = append(values, value)
	}
	return values
}

func warmValue() []byte {
	value := make([]byte, number("size", 100))
	value[0] = warm
	return value
}

func numberIn(value []byte) int {
	return int(value[1])<<16 | int(value[2])<<8 | int(value[3])
}

func connect() (*nats.Conn, jetstream.JetStream) {
	link, err := nats.Connect("nats://" + strings.Split(word("servers", ""), ",")[0])
	check(err)
	stream, err := jetstream.New(link, jetstream.WithPublishAsyncMaxPending(4000))
	check(err)
	return link, stream
}

func subjects() []string {
	count, topic := number("topics", 1), word("topic", "")
	if count == 1 {
		return []string{topic + ".x"}
	}
	var found []string
	for n := 0; n < count; n++ {
		found = append(found, fmt.Sprintf("%s-%d.x", topic, n))
	}
	return found
}

func produceAsync() {
	values, names := ring(), subjects()
	_, js := connect()
	for _, name := range names {
		_, err := js.Publish(context.Background(), name, warmValue())
		check(err)
	}
	gate()
	start, records := now(), int64(0)
	until := start + int64(number("seconds_ms", 1000))*1e6
	var pending []jetstream.PubAckFuture
	for records == 0 || now() < until {
		for _, value := range values {
			future, err := js.PublishMsgAsync(&nats.Msg{Subject: names[int(records)%len(names)], Data: value}, jetstream.WithStallWait(30*time.Second))
			check(err)
			pending = append(pending, future)
			records++
		}
	}
	<-js.PublishAsyncComplete()
	stop := now()
	for _, future := range pending {
		select {
		case err := <-future.Err():
			check(err)
		default:
		}
	}
	rate(start, stop, records)
}

func produceFast() {
	values, name := ring(), subjects()[0]
	_, js := connect()
	_, err := js.Publish(context.Background(), name, warmValue())
	check(err)
	gate()
	start, records := now(), int64(0)
	until := start + int64(number("seconds_ms", 1000))*1e6
	publisher, err := jetstreamext.NewFastPublisher(js, jetstreamext.FastPublishFlowControl{Flow: 500, MaxOutstandingAcks: 10, AckTimeout: 30 * time.Second})
	check(err)
	for records == 0 || now() < until {
		for _, value := range values {
			_, err := publisher.Add(name, value)
			check(err)
			records++
		}
	}
	_, err = publisher.Close(context.Background())
	check(err)
	rate(start, now(), records)
}

func topics() []string {
	var found []string
	for _, name := range subjects() {
		found = append(found, strings.TrimSuffix(name, ".x"))
	}
	return found
}

func consumer(js jetstream.JetStream, topic string, policy jetstream.DeliverPolicy) jetstream.Consumer {
	found, err := js.OrderedConsumer(context.Background(), topic, jetstream.OrderedConsumerConfig{DeliverPolicy: policy})
	check(err)
	return found
}

// counts of each producer
func counts() []int64 {
	var found []int64
	for _, part := range strings.Split(word("counts", "0"), ",") {
		n, err := strconv.ParseInt(part, 10, 64)
		check(err)
		found = append(found, n)
	}
	return found
}

func consume() {
	values, all, strict := ring(), word("check", "ends") == "all", number("lanes", 1) == 1
	sent, wanted := counts(), int64(0)
	for _, n := range sent {
		wanted += n
	}
	seen, last := make([][]int64, len(sent)), map[[2]int]int{}
	for p := range seen {
		seen[p] = make([]int64, len(values))
	}
	gate()
	start := int64(0)
	_, js := connect()
	records, warmed := int64(0), int64(0)
	for lane, topic := range topics() {
		if records == wanted {
			break
		}
		share := wanted
		if !strict {
			stream, err := js.Stream(context.Background(), topic)
			check(err)
			share = int64(stream.CachedInfo().State.Msgs)
		}
		iter, err := consumer(js, topic, jetstream.DeliverAllPolicy).Messages(jetstream.PullMaxMessages(10000))
		check(err)
		for got := int64(0); got < share; {
			message, err := iter.Next()
			check(err)
			value := message.Data()
			if start == 0 {
				start = now()
			}
			if value[0] == warm {
				warmed++
				if !strict {
					got++
				}
				continue
			}
			got++
			records++
			if !all {
				continue
			}
			p, n := int(value[0]), numberIn(value)
			before, known := last[[2]int{lane, p}]
			if !known && strict {
				before, known = -1, true
			}
			step := ((n-before)%len(values) + len(values)) % len(values)
			if known && step != 1 && strict {
				fail("after %d of producer %d came %d", before, p, n)
			}
			last[[2]int{lane, p}] = n
			if !bytes.Equal(value[1:], values[n][1:]) {
				fail("record %d was changed", n)
			}
			seen[p][n]++
		}
		iter.Stop()
	}
	stop := now()
	if all {
		for p, count := range sent {
			for n, times := range seen[p] {
				should := count / int64(len(values))
				if int64(n) < count%int64(len(values)) {
					should++
				}
				if times != should {
					fail("record %d came %d times, sent %d", n, times, should)
				}
			}
		}
	}
	if records != wanted {
		fail("%d records came, sent %d", records, wanted)
	}
	rate(start, stop, records+warmed-1)
}

func live() {
	length, count := len(ring()), number("consumers", 1)
	var up, down sync.WaitGroup
	var wanted, lastAt atomic.Int64
	wanted.Store(1 << 62)
	for c := 0; c < count; c++ {
		up.Add(1)
		down.Add(1)
		go func() {
			_, js := connect()
			done := make(chan struct{})
			var records atomic.Int64
			reading, err := consumer(js, word("topic", ""), jetstream.DeliverNewPolicy).Consume(func(message jetstream.Msg) {
				value := message.Data()
				if value[0] == warm {
					return
				}
				if numberIn(value) != int(records.Load()%int64(length)) {
					fail("instead of record %d came %d", records.Load(), numberIn(value))
				}
				records.Add(1)
				lastAt.Store(now())
			}, jetstream.PullMaxMessages(10000))
			check(err)
			time.Sleep(300 * time.Millisecond)
			up.Done()
			go func() {
				for records.Load() < wanted.Load() {
					time.Sleep(5 * time.Millisecond)
				}
				close(done)
			}()
			<-done
			reading.Stop()
			down.Done()
		}()
	}
	up.Wait()
	n, err := strconv.ParseInt(gate(), 10, 64)
	check(err)
	wanted.Store(n)
	down.Wait()
	rate(0, lastAt.Load(), n*int64(count))
}

func latencyProduce() {
	link, js := connect()
	name := subjects()[0]
	_, err := js.Publish(context.Background(), name, warmValue())
	check(err)
	var acked, bad atomic.Int64
	inbox := link.NewInbox()
	_, err = link.Subscribe(inbox, func(message *nats.Msg) {
		if bytes.Contains(message.Data, []byte(`"error"`)) || len(message.Data) == 0 {
			bad.Add(1)
		}
		acked.Add(1)
	})
	check(err)
	perSecond := number("rate", 1000)
	count := perSecond * number("seconds", 1)
	gate()
	start := now() + 1_000_000
	for n := 0; n < count; n++ {
		due := start + int64(n)*1_000_000_000/int64(perSecond)
		waitUntil(due)
		value := make([]byte, number("size", 100))
		binary.BigEndian.PutUint32(value, uint32(n&0xFFFFFF))
		binary.LittleEndian.PutUint64(value[head:], uint64(due))
		check(link.PublishRequest(name, inbox, value))
	}
	for acked.Load() < int64(count) {
		time.Sleep(time.Millisecond)
	}
	if bad.Load() > 0 {
		fail("%d records failed", bad.Load())
	}
	end(map[string]any{"records": count})
}

func latencyConsume() {
	_, js := connect()
	count := number("rate", 1000) * number("seconds", 1)
	found := make([]int64, 0, count)
	done := make(chan struct{})
	_, err := consumer(js, word("topic", ""), jetstream.DeliverNewPolicy).Consume(func(message jetstream.Msg) {
		at, value := now(), message.Data()
		if value[0] == warm {
			return
		}
		if numberIn(value) != len(found)&0xFFFFFF {
			fail("instead of record %d came %d", len(found), numberIn(value))
		}
		found = append(found, at-int64(binary.LittleEndian.Uint64(value[head:])))
		if len(found) == count {
			close(done)
		}
	})
	check(err)
	time.Sleep(300 * time.Millisecond)
	gate()
	<-done
	kept := found[number("rate", 1000)*number("skip", 1):]
	sort.Slice(kept, func(a, b int) bool { return kept[a] < kept[b] })
	at := func(share float64) float64 {
		n := int(float64(len(kept)) * share)
		if n >= len(kept) {
			n = len(kept) - 1
		}
		return float64(kept[n]) / 1e6
	}
	end(map[string]any{"records": count, "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p99.9": at(0.999), "worst": at(1)})
}

func main() {
	for _, arg := range os.Args[2:] {
		name, value, _ := strings.Cut(arg, "=")
		told[name] = value
	}
	switch os.Args[1] {
	case "produce":
		if word("client", "async") == "fast" {
			produceFast()
		} else {
			produceAsync()
		}
	case "consume":
		consume()
	case "live":
		live()
	case "latency_produce":
		latencyProduce()
	case "latency_consume":
		latencyConsume()
	default:
		fail("there is no %s", os.Args[1])
	}
}
