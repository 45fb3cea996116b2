package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

const patience = time.Minute // of what is to answer

// netStep does what a program with a network would; it says false for another
// step. What fails is said, in one line, and is no failure of the program.
func netStep(op string, args []string) bool {
	switch op {
	case "tcp": // ADDRESS TEXT: says it, ends, prints the answer
		answer, err := sayTCP(args[0], args[1])
		fmt.Printf("tcp %s: %q %v\n", args[0], answer, err)
	case "udp": // ADDRESS TEXT
		answer, err := sayUDP(args[0], args[1])
		fmt.Printf("udp %s: %q %v\n", args[0], answer, err)
	case "lookup": // NAME
		addrs, err := net.DefaultResolver.LookupHost(context.Background(), args[0])
		fmt.Printf("lookup %s: %s %v\n", args[0], strings.Join(addrs, " "), err)
	case "text": // NAME: the size of its text
		texts, err := net.DefaultResolver.LookupTXT(context.Background(), args[0])
		fmt.Printf("text %s: %d %v\n", args[0], len(strings.Join(texts, "")), err)
	case "load": // ADDRESS BYTES: takes that many, or what comes
		n, err := load(args[0], args[1])
		fmt.Printf("load %s: %d %v\n", args[0], n, err)
	case "dials": // ADDRESS N: as many at once, each answered
		many(args[0], args[1])
	case "steady": // ADDRESS: one connection, a line to and fro for each line of the file
		steady(args[0], args[1])
	case "interfaces":
		all, err := net.InterfaceAddrs()
		fmt.Println("interfaces", all, err)
	default:
		return false
	}
	return true
}

func sayTCP(addr, text string) (string, error) {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

func sayUDP(addr, text string) (string, error) {
	conn, err := net.Dial("udp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 64<<10)
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	n, err := conn.Read(buf)
	return string(buf[:n]), err
}

func load(addr, size string) (int64, error) {
	most, err := strconv.ParseInt(size, 10, 64)
	check(err)
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	return io.CopyN(io.Discard, conn, most)
}

func many(addr, count string) {
	n, err := strconv.Atoi(count)
	check(err)
	results := make(chan error, n)
	for i := range n {
		go func() {
			text := fmt.Sprint("connection ", i)
			answer, err := sayTCP(addr, text)
			if err == nil && answer != strings.ToUpper(text) {
				err = fmt.Errorf("answer %q", answer)
			}
			results <- err
		}()
	}
	good := 0
	for range n {
		if err := <-results; err != nil {
			fmt.Println("many:", err)
			continue
		}
		good++
	}
	fmt.Println("many", good)
}

// steady keeps one connection over what happens to the node. It says a line for
// each file that appears in the folder, and then waits for the next.
func steady(addr, dir string) {
	conn, err := net.Dial("tcp", addr)
	check(err)
	defer conn.Close()
	buf := make([]byte, 64)
	for i := 0; ; i++ {
		text := fmt.Sprintf("line %d", i)
		_, err := io.WriteString(conn, text)
		check(err)
		_, err = io.ReadFull(conn, buf[:len(text)])
		check(err)
		fmt.Printf("steady %s\n", buf[:len(text)])
		for {
			if _, err := os.Stat(fmt.Sprintf("%s/%d", dir, i)); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if i == 2 {
			return
		}
	}
}
