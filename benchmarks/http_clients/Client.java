import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Path;

/** POST the file named by each line of the standard input; print the status or the exception. */
public class Client {
    public static void main(String[] args) throws Exception {
        var client = HttpClient.newHttpClient(); // offers HTTP/2 in each request
        var lines = new BufferedReader(new InputStreamReader(System.in));
        for (var file = lines.readLine(); file != null; file = lines.readLine()) {
            var request =
                    HttpRequest.newBuilder(URI.create(args[0]))
                            .header("Content-Type", "image/jpeg")
                            .POST(BodyPublishers.ofFile(Path.of(file)))
                            .build();
            try {
                System.out.println(client.send(request, BodyHandlers.ofByteArray()).statusCode());
            } catch (Exception exception) {
                System.out.println(exception);
            }
        }
    }
}
