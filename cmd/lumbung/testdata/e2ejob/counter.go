package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// counter counts in its memory and in a file of an output, twenty a second. Who
// connects to port 8080 is told the count, and ends the program with "end".
func counter() {
	var count atomic.Int64
	l, err := net.Listen("tcp", "127.0.0.1:8080")
	check(err)
	end := make(chan struct{}, 1)
	go func() {
		for {
			conn, err := l.Accept()
			check(err)
			go func() {
				defer conn.Close()
				fmt.Fprintln(conn, count.Load())
				if line, _ := bufio.NewReader(conn).ReadString('\n'); line == "end\n" {
					end <- struct{}{}
				}
			}()
		}
	}()
	for {
		n := count.Add(1)
		if n > 1 {
			b, err := os.ReadFile("/out/count")
			check(err)
			if got := strings.TrimSpace(string(b)); got != strconv.FormatInt(n-1, 10) {
				fmt.Println("the file holds", got)
				os.Exit(3)
			}
		}
		check(os.WriteFile("/out/count", []byte(strconv.FormatInt(n, 10)), 0o644))
		fmt.Println("count", n)
		select {
		case <-end:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}
