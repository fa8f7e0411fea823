// POST the file named by each line of the standard input; print the status or the error.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
)

func post(url, name string) string {
	file, err := os.Open(name)
	if err != nil {
		return err.Error()
	}
	info, err := file.Stat()
	if err != nil {
		return err.Error()
	}
	request, err := http.NewRequest("POST", url, file)
	if err != nil {
		return err.Error()
	}
	request.ContentLength = info.Size()
	request.Header.Set("Content-Type", "image/jpeg")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err.Error()
	}
	return fmt.Sprint(response.StatusCode)
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fmt.Println(post(os.Args[1], lines.Text()))
	}
}
