package client

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ExecProtocol is what a connection is upgraded to for exec. Frames go both
// ways on it: one byte of type, four of length (big endian), then the data.
const ExecProtocol = "lumbung-exec/1"

// MaxFrame bounds the data of one frame.
const MaxFrame = 64 << 10

const frameHeader = 5

// FrameType says what a frame carries.
type FrameType byte

// The frames of exec. The client sends stdin, its end and sizes; the node sends
// the rest.
const (
	FrameStdin    FrameType = 1
	FrameStdout   FrameType = 2
	FrameStderr   FrameType = 3
	FrameResize   FrameType = 4 // rows and columns, two bytes each
	FrameExit     FrameType = 5 // the exit code, four bytes; the last frame
	FrameError    FrameType = 6 // a Problem as JSON; the last frame
	FrameStdinEOF FrameType = 7
	FramePing     FrameType = 8 // empty; finds out whether the client lives
)

// ErrFrame says that what came is no frame of ExecProtocol.
var ErrFrame = errors.New("bad exec frame")

// fixed lengths of frames that have one.
func (t FrameType) length() (n int, fixed bool) {
	switch t {
	case FrameResize, FrameExit:
		return 4, true
	case FrameStdinEOF, FramePing:
		return 0, true
	}
	return MaxFrame, false
}

func (t FrameType) check(n int) error {
	if t < FrameStdin || t > FramePing {
		return fmt.Errorf("type %d: %w", t, ErrFrame)
	}
	want, fixed := t.length()
	if n > want || fixed && n != want {
		return fmt.Errorf("type %d with %d bytes: %w", t, n, ErrFrame)
	}
	return nil
}

// WriteFrame writes one frame in one write.
func WriteFrame(w io.Writer, t FrameType, data []byte) error {
	if err := t.check(len(data)); err != nil {
		return err
	}
	buf := make([]byte, frameHeader+len(data))
	buf[0] = byte(t)
	binary.BigEndian.PutUint32(buf[1:], uint32(len(data)))
	copy(buf[frameHeader:], data)
	_, err := w.Write(buf)
	return err
}

// ReadFrame reads one frame into buf, which is made as long as needed; data is
// a part of it. io.EOF means that the stream ended between frames.
func ReadFrame(r io.Reader, buf *[]byte) (t FrameType, data []byte, err error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	t = FrameType(head[0])
	n := binary.BigEndian.Uint32(head[1:])
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("%d bytes where at most %d may be: %w", n, MaxFrame, ErrFrame)
	}
	if err := t.check(int(n)); err != nil {
		return 0, nil, err
	}
	if cap(*buf) < int(n) {
		*buf = make([]byte, n, MaxFrame)
	}
	data = (*buf)[:n]
	if _, err := io.ReadFull(r, data); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return t, data, nil
}

// EncodeSize is the data of a FrameResize. Sizes out of range are cut to it.
func EncodeSize(rows, cols int) []byte {
	clamp := func(n int) uint16 { return uint16(min(max(n, 0), 1<<16-1)) }
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, clamp(rows)), clamp(cols))
}

// DecodeSize reads the data of a FrameResize.
func DecodeSize(data []byte) (rows, cols int) {
	return int(binary.BigEndian.Uint16(data)), int(binary.BigEndian.Uint16(data[2:]))
}

// EncodeExit is the data of a FrameExit.
func EncodeExit(code int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(int32(code))) }

// DecodeExit reads the data of a FrameExit.
func DecodeExit(data []byte) int { return int(int32(binary.BigEndian.Uint32(data))) }
