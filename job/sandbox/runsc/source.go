package main

import (
	"encoding/binary"
	"errors"
	"sync"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/log"
)

// A request is 8 bytes of id and a path; an answer is the id, 4 bytes of errno
// and, if that is 0, the file as a descriptor, or none for a file that the
// gofer opens itself. Both are little-endian, each one packet. The other end is
// package sandbox (lazy_linux.go).
const (
	idLen     = 8
	answerLen = idLen + 4
)

// source asks the supervisor for files and waits until they are there.
type source struct {
	fd int

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan answer
	broken  bool
}

type answer struct {
	fd  int // -1: none
	err error
}

func newSource(fd int) *source {
	s := &source{fd: fd, waiting: map[uint64]chan answer{}}
	go s.read() // ends with the process, or the supervisor
	return s
}

// open returns a descriptor of the whole file, or -1 for one that is not the
// image's. It waits for as long as the file takes to arrive.
func (s *source) open(path string) (int, error) {
	ch := make(chan answer, 1)
	s.mu.Lock()
	if s.broken {
		s.mu.Unlock()
		return -1, unix.EIO
	}
	id := s.next
	s.next++
	s.waiting[id] = ch
	s.mu.Unlock()

	packet := binary.LittleEndian.AppendUint64(nil, id)
	packet = append(packet, path...)
	for {
		err := unix.Sendmsg(s.fd, packet, nil, nil, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			s.mu.Lock()
			delete(s.waiting, id)
			s.mu.Unlock()
			log.Warningf("asking the supervisor for %q: %v", path, err)
			return -1, unix.EIO
		}
		break
	}
	a := <-ch
	return a.fd, a.err
}

func (s *source) read() {
	err := s.readAll()
	log.Warningf("the supervisor hands out no more files: %v", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = true
	for id, ch := range s.waiting {
		delete(s.waiting, id)
		ch <- answer{-1, unix.EIO}
	}
}

// readAll takes answers until the connection ends. It waits in ppoll: recvmsg
// is allowed to the gofer only where it does not block.
func (s *source) readAll() error {
	var packet [answerLen + 1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		poll := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
		if _, err := unix.Ppoll(poll, nil, nil); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return err
		}
		n, oobn, _, _, err := unix.Recvmsg(s.fd, packet[:], oob, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return err
		}
		if n != answerLen {
			return errors.New("the connection has ended")
		}
		s.deliver(packet[:n], descriptor(oob[:oobn]))
	}
}

func descriptor(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return -1
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1
	}
	return fds[0]
}

func (s *source) deliver(packet []byte, fd int) {
	id := binary.LittleEndian.Uint64(packet)
	a := answer{fd: fd}
	if errno := unix.Errno(binary.LittleEndian.Uint32(packet[idLen:])); errno != 0 {
		a.err = errno
	}
	s.mu.Lock()
	ch := s.waiting[id]
	delete(s.waiting, id)
	s.mu.Unlock()
	if ch == nil || a.err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		a.fd = -1
	}
	if ch != nil {
		ch <- a
	}
}
