// Command worker does with etcd's own Go client what programs do with etcd, and checks every answer.
//
// It is given the endpoints, comma separated. It prints one line per part, and "go: N checks passed" if all is as it should be;
// anything else ends it with status 1. When it prints "RESTART", whoever drives it takes a server down and up again, in which time
// the work goes on, and then writes a line to its standard input.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// patience is how long one part may take. Nothing waits for it when all is well.
const patience = 40 * time.Second

// worker is the connection and what has been checked over it.
type worker struct {
	*clientv3.Client
	ctx    context.Context
	input  *bufio.Reader
	checks int
}

// failure ends the part that is under way.
type failure struct{ error }

// check fails the run unless the condition holds.
func (w *worker) check(holds bool, format string, args ...any) {
	if !holds {
		panic(failure{fmt.Errorf(format, args...)})
	}
	w.checks++
}

// must gives the value of a call that has to succeed.
func must[T any](value T, err error) T {
	if err != nil {
		panic(failure{err})
	}
	return value
}

// refused checks that a call failed with this error.
func (w *worker) refused(err, want error, what string) {
	w.check(errors.Is(err, want), "%s: %v instead of %v", what, err, want)
}

// restart has a server taken down and up again.
func (w *worker) restart() {
	fmt.Println("RESTART")
	must(w.input.ReadString('\n'))
}

// part runs one part within its time.
func (w *worker) part(name string, work func(*worker)) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	defer func() {
		if caught := recover(); caught != nil {
			found, ok := caught.(failure)
			if !ok {
				panic(caught)
			}
			err = fmt.Errorf("%s: %w", name, found.error)
		}
	}()
	w.ctx = ctx
	before := w.checks
	work(w)
	fmt.Printf("%s: %d checks\n", name, w.checks-before)
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Println("FAILED", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return errors.New("usage: worker ENDPOINT[,ENDPOINT...]")
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            strings.Split(os.Args[1], ","),
		DialTimeout:          5 * time.Second,
		DialKeepAliveTime:    2 * time.Second,
		DialKeepAliveTimeout: 2 * time.Second,
		Logger:               zap.NewNop(),
	})
	if err != nil {
		return err
	}
	defer client.Close()
	w := &worker{Client: client, input: bufio.NewReader(os.Stdin)}
	for _, part := range []struct {
		name string
		work func(*worker)
	}{
		{"kv", kv}, {"txn", txn}, {"refusals", refusals}, {"watch", watch}, {"compacted watch", compactedWatch},
		{"big events", bigEvents}, {"lease", lease}, {"expiry", expiry}, {"mutex", mutex}, {"election", election},
		{"transfers", transfers}, {"maintenance", maintenance}, {"watch over a restart", watchOverRestart},
	} {
		if err := w.part(part.name, part.work); err != nil {
			return err
		}
	}
	fmt.Printf("go: %d checks passed\n", w.checks)
	return nil
}
