package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lumbung-net/lumbung/node/client"
)

// clockSynced asks the kernel whether something keeps the clock right.
func clockSynced() (synced, known bool) {
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return false, false
	}
	return t.Status&unix.STA_UNSYNC == 0, true
}

// quicBuffer is what quic-go wants a UDP socket to hold, in bytes.
// https://github.com/quic-go/quic-go/wiki/UDP-Buffer-Sizes
const quicBuffer = 7_500_000

// checkBuffers looks at how much a UDP socket may hold.
func checkBuffers() (client.Finding, bool) {
	raw, err := os.ReadFile("/proc/sys/net/core/rmem_max")
	if err != nil {
		return client.Finding{}, false
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || n >= quicBuffer {
		return client.Finding{}, false
	}
	return client.Finding{
		Level: levelWarn, What: "UDP", Detail: fmt.Sprintf("sockets hold %d bytes at most: QUIC is slower than it could be", n),
		Remedy: fmt.Sprintf("sysctl -w net.core.rmem_max=%d net.core.wmem_max=%d", quicBuffer, quicBuffer),
	}, true
}
