package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// work does much of one kind and prints the nanoseconds that it took.
func work(kind string) {
	began := time.Now()
	switch kind {
	case "cpu":
		sum := sha256.Sum256(nil)
		for range 300_000 {
			sum = sha256.Sum256(sum[:])
		}
	case "syscalls":
		for range 50_000 {
			syscall.Getppid()
		}
	case "files":
		files()
	}
	fmt.Println(time.Since(began).Nanoseconds())
}

func files() {
	data := bytes.Repeat([]byte("x"), 4096)
	check(os.MkdirAll("work", 0o755))
	for i := range 500 {
		name := filepath.Join("work", strconv.Itoa(i))
		check(os.WriteFile(name, data, 0o644))
		_, err := os.Stat(name)
		check(err)
		got, err := os.ReadFile(name)
		check(err)
		if !bytes.Equal(got, data) {
			check(fmt.Errorf("%s differs", name))
		}
	}
	check(os.RemoveAll("work"))
}
