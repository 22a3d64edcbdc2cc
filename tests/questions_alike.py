"""Pairs of questions for the semantic cache: those with one answer, and those that only look so.  `one | other`."""

from __future__ import annotations

from typing import Final

# One answer serves both.
SAME: Final = """
What is the capital of France? | what's the capital of France
How do I reset my password? | How can I reset my password?
How do I reset my password? | Please tell me how to reset my password.
Explain photosynthesis | Can you explain photosynthesis?
Explain photosynthesis. | Please explain photosynthesis to me
What are the benefits of exercise? | What are benefits of exercise
Who wrote Hamlet? | Who wrote Hamlet
List three uses of baking soda | List 3 uses of baking soda.
How many planets are in the solar system? | How many planets are in our solar system?
What is machine learning? | What's machine learning?
Summarise the plot of Dune | Please summarise the plot of Dune.
Translate 'good morning' to Spanish | Translate "good morning" to Spanish, please
What is the boiling point of water? | what is the boiling point of water
How do I install Python on Ubuntu? | How can I install Python on Ubuntu?
Write a haiku about autumn | Write me a haiku about autumn
What is the population of Japan? | What's the population of Japan?
How does a transistor work? | How do transistors work?
Recommend a book about stoicism | Please recommend me a book about stoicism
Why is the sky blue? | Why is the sky blue
What time zone is Berlin in? | What time zone is Berlin in
How do I delete a git branch? | How can I delete a git branch?
How do I delete a file in Linux? | How do I erase a file in Linux?
Define entropy | Define entropy, please.
What does HTTP 404 mean? | what does HTTP 404 mean?
How long should I boil an egg? | How long should I boil eggs?
What is the speed of light? | Hi, what is the speed of light? Thanks!
What is the difference between TCP and UDP? | what's the difference between TCP and UDP?
How do I start a podcast? | How can I begin a podcast?
What is the largest ocean? | What is the biggest ocean?
Give me a recipe for pancakes | Recipe for pancakes, please
Who painted the Mona Lisa? | Who painted the Mona Lisa, please?
How do vaccines work? | How does a vaccine work?
What causes earthquakes? | What causes an earthquake?
How do I fix a flat tire? | How can I repair a flat tire?
How do I buy a house? | How do I purchase a house?
When did World War II end? | When did World War II end
How do I change my email address? | How can I change my e-mail address?
What are symptoms of the flu? | What are the symptoms of flu?
How do plants grow? | How does a plant grow?
What is a black hole? | Please tell me what a black hole is
What is the tallest mountain in the world? | what's the tallest mountain in the world?
How can I learn to play the guitar? | How do I learn to play guitar?
What is inflation? | Tell me what inflation is
Where is my order? | Where's my order
What are your opening hours? | What are the opening hours?
How much does shipping cost? | How much does the shipping cost?
Do you ship to Canada? | Do you ship to Canada, please?
Can I return an item? | Can I return items?
What's your refund policy? | What is the refund policy?
I forgot my password, how do I reset it? | I've forgotten my password; how can I reset it?
How do I track my package? | How can I find out where my parcel is?
What is the best way to learn a language? | How should one go about learning a language?
Tell me a joke | Make me laugh
What's the weather like in summer in Rome? | How is Rome's climate during summertime?
Which planet is closest to the sun? | What is the nearest planet to the sun?
""".strip()  # the last few need understanding, which the check does not have: they are asked anew, which costs little

# One answer would be wrong for the other.
DIFFERENT: Final = """
How do I turn on the heating? | How do I turn off the heating?
Delete my account | Do not delete my account
Enable two-factor authentication | Disable two-factor authentication
Is it safe to mix bleach and vinegar? | Is it unsafe to mix bleach and vinegar?
What is the capital of Australia? | What is the capital of Austria?
What was revenue in 2021? | What was revenue in 2022?
Convert 10 USD to EUR | Convert 10 EUR to USD
Convert 10 miles to km | Convert 100 miles to km
Who is older, Ann or Bob? | Who is younger, Ann or Bob?
Does stress cause insomnia? | Does insomnia cause stress?
Translate this to French: cat | Translate this to Spanish: cat
How do I increase the font size? | How do I decrease the font size?
List foods that contain gluten | List foods that do not contain gluten
List foods with lactose | List foods without lactose
What happened before the war? | What happened after the war?
Which is the first month? | Which is the last month?
How do I encrypt a file? | How do I decrypt a file?
How do I upload a file? | How do I download a file?
Should I take aspirin with alcohol? | Should I take ibuprofen with alcohol?
What is the dose of paracetamol for adults? | What is the dose of paracetamol for children?
What is the minimum wage? | What is the maximum wage?
Can I cancel my order? | Can't I cancel my order?
Flights from Paris to Rome | Flights from Rome to Paris
Book a table for two | Book a table for four
Book a table for 7 pm | Book a table for 7 am
How many days are in February 2023? | How many days are in February 2024?
What is 15% of 80? | What is 50% of 80?
What is 12 + 7? | What is 12 - 7?
What is 12 * 7? | What is 12 / 7?
Sort the list ascending | Sort the list descending
Allow traffic on port 80 | Deny traffic on port 80
Allow traffic on port 80 | Allow traffic on port 8080
How do I lock the door? | How do I unlock the door?
Who won the 2018 World Cup? | Who won the 2022 World Cup?
What is the CEO of Apple called? | What is the CEO of Amazon called?
Why did he resign? | When did he resign?
When was Python released? | Why was Python released?
Where was Einstein born? | When was Einstein born?
What are the pros of remote work? | What are the cons of remote work?
Name a mammal that lays eggs | Name a mammal that does not lay eggs
Is Pluto a planet? | Isn't Pluto a dwarf planet?
How do I grant access to a user? | How do I revoke access from a user?
Add the item to the cart | Remove the item from the cart
How do I import a CSV? | How do I export a CSV?
Reply yes if this is spam | Reply no if this is spam
Is the patient allergic to penicillin? | Is the patient not allergic to penicillin?
Explain recursion in Python | Explain recursion in Java
How do I install Node on Windows? | How do I install Node on macOS?
What is the time in Tokyo? | What is the time in Toronto?
How long does it take to boil an egg? | How long does it take to fry an egg?
Who wrote War and Peace? | Who wrote Crime and Punishment?
Summarise chapter 3 | Summarise chapter 4
Summarise chapter three | Summarise chapter four
What is the square root of 16? | What is the square of 16?
How do I connect to the VPN? | How do I disconnect from the VPN?
How do I subscribe to the newsletter? | How do I unsubscribe from the newsletter?
Is a tomato a fruit? | Is a tomato a vegetable?
What are the side effects of statins? | What are the effects of statins?
Does the warranty cover water damage? | Does the warranty cover fire damage?
Does the plan include roaming? | Does the plan exclude roaming?
What is the opposite of hot? | What is the opposite of cold?
Buy 100 shares of ACME | Sell 100 shares of ACME
Approve invoice 1042 | Reject invoice 1042
Approve invoice 1042 | Approve invoice 1024
What is the interest rate on a loan? | What is the interest rate on a deposit?
How do I start the server? | How do I stop the server?
Which users can log in? | Which users cannot log in?
Which countries are in the EU? | Which countries are not in the EU?
Is alcohol legal in Kuwait? | Is alcohol illegal in Kuwait?
Who did Brutus kill? | Who killed Brutus?
Did Germany beat Brazil? | Did Brazil beat Germany?
What should I do if my child has a fever? | What should I do if my dog has a fever?
What is the melting point of iron? | What is the melting point of gold?
What is the melting point of iron? | What is the boiling point of iron?
How do I get from Berlin to Munich by train? | How do I get from Berlin to Munich by car?
Give me five synonyms for happy | Give me five antonyms for happy
Give me five synonyms for happy | Give me five synonyms for sad
What is my balance? | What was my balance?
Is the store open on Sunday? | Is the store open on Monday?
Is the store open on Sunday? | Is the store closed on Sunday?
Write a positive review | Write a negative review
Write a poem about love in English | Write a poem about love in German
How do I open a bank account? | How do I close a bank account?
What is the GDP of Chad? | What is the GDP of Chile?
Is it going to rain today? | Is it going to rain tomorrow?
What did the prime minister say yesterday? | What did the prime minister say today?
How many calories are in an apple? | How many calories are in an apple pie?
How can I gain weight? | How can I lose weight?
How can I gain weight? | How can I gain muscle?
What comes after B in the alphabet? | What comes before B in the alphabet?
Is 7 less than 9? | Is 7 more than 9?
Is 7 less than 9? | Is 9 less than 7?
When does the sale start? | When does the sale end?
Show all users except admins | Show all users including admins
Show all users | Show no users
Can I drink coffee while pregnant? | Can I drink tea while pregnant?
Who is the father of Luke? | Who is the mother of Luke?
How do I make a backup? | How do I restore a backup?
What is the left operand? | What is the right operand?
Set the alarm for 6:30 | Set the alarm for 6:45
Call John Smith | Call John Smythe
What does `rm -rf /` do? | What does `rm -r /tmp` do?
Open config.yaml | Open config.json
Email ann@example.com | Email anna@example.com
Go to https://a.example/x | Go to https://a.example/y
Ist das erlaubt? | Ist das nicht erlaubt?
Je veux annuler | Je ne veux pas annuler
Quiero cancelar | No quiero cancelar
What is my name? | What is your name?
Is the contract I signed valid? | Is the contract they signed valid?
Summarise what we owe them | Summarise what they owe us
What is his salary? | What is her salary?
Is he married? | Is she married?
Where do we live? | Where do they live?
Does he owe me? | Do I owe him?
What does 😀 mean? | What does 😡 mean?
What is 5²? | What is 52?
What is x₁? | What is x1?
What is 5!? | What is 5?
What is n! in code? | What is n in code?
What is 12 × 7? | What is 12 ÷ 7?
What is 12 − 7? | What is 12 7?
What is 12 - 7? | What is 12 7?
What is .5 plus 2? | What is 5 plus 2?
What is 1,5 plus 2? | What is 15 plus 2?
Is a ≤ b? | Is a ≥ b?
What is A ∪ B? | What is A ∩ B?
What is √ 16? | What is 16?
What is A & B? | What is A | B?
Convert ₹ 10 | Convert ₩ 10
Is (a + b) * c even? | Is a + (b * c) even?
What is f'(x)? | What is f(x)?
दिन क्या है? | दान क्या है?
Is 5 Mb a lot? | Is 5 MB a lot?
Is a dog a friend? | Has a dog a friend?
What is a lawyer? | What does a lawyer do?
How is it made? | What is it made of?
Decode aB3xZ9 | Decode ab3xz9
How do I work? | How do you work?
How long is " a"? | How long is "a"?
How do you say hi? | How do you say hello?
Show just admins | Show admins
Is that about 5? | Is that exactly 5?
Translate this | Translate that
Is he in the US? | Is he in us?
How often should I feed a newborn formula at night? | How much should I feed a newborn formula at night?
How tall is the Golden Gate Bridge in San Francisco? | How wide is the Golden Gate Bridge in San Francisco?
Which of our suppliers are we suing in Germany? | Which of our suppliers are suing us in Germany?
Who is calling me from the number +1 202 555 0101? | Who am I calling from the number +1 202 555 0101?
Which customers have you paid? | Which customers have paid you?
Who will you call? | Who will call you?
Can my landlord sue the neighbor over the fence? | Can the landlord sue my neighbor over the fence?
Which invoices of Acme aren't paid this month? | Which invoices of Acme weren't paid this month?
Which customers don't pay? | Which customers didn't pay?
Who can't vote? | Who doesn't vote?
Was the French army defeated at Waterloo in 1815? | Did the French army defeat at Waterloo in 1815?
Who was hired? | Who had hired?
Can you die from eating raw chicken? | Will you die from eating raw chicken?
Can you drink tap water in Mexico? | Would you drink tap water in Mexico?
How would the universe end? | How can the universe end?
Did few people survive the Titanic? | Did a few people survive the Titanic?
Delete the users of the team | Delete the users and the team
Delete all files of Bob and Alice | Delete all files and Bob of Alice
What is the value of a * b + c? | What is the value of * b + c?
What does max(a, b) return? | What does max(b) return?
What is the type of (1,) in Python? | What is the type of (1) in Python?
What does x[:-1] return? | What does x[-1] return?
What does sort! do in Ruby? | What does sort do in Ruby?
What does git add . do? | What does git add do?
What does ; mean in bash? | What does : mean in bash?
Pardon impossible, execute him | Pardon, impossible execute him
What is max(1,200)? | What is max(1200)?
Translate to French: Turkey | Translate to French: turkey
What is i in electronics? | What is I in electronics?
¿A quién demandó Juan Pérez en Madrid? | ¿Quién demandó a Juan Pérez en Madrid?
¿Llegas a casa mañana por la tarde? | ¿Llega a casa mañana por la tarde?
When is the next train from Berlin to Munich? | When is the next training from Berlin to Munich?
Is the chicken cooking? | Is the chicken cooked?
Are the backups deleting? | Are the backups deleted?
What is a caring company? | What is a car company?
What is the fee for changing a plan? | What is the fee for changing a plane?
Is a C function the same as a C++ method? | Is a C method the same as a C++ function?
How do I make a new branch in git? | How do I build a new branch in git?
How do I find customs? | How do I find custom?
""".strip()


def pairs(text: str) -> list[tuple[str, str]]:
    found = []
    for line in text.splitlines():
        one, _, other = line.partition(" | ")
        found.append((one, other))
    return found
